"""A configuration file is read exactly, or refused with file, line and what to do."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.catalog.load import load, parse
from controlplane.contract.snapshot import BreakerPolicy, CachePolicy, PayloadPolicy, Unpriced, Window
from controlplane.errors import ConfigError

BAD_FILES = sorted((Path(__file__).parent / "testdata").glob("*.bad.yaml"))

GOOD = """
server:
  port: 4101
  data_dir: /var/lib/hephaestus
  detection: {sweep_every_s: 250ms}
  log: {rotate_bytes: 64MiB}
  proxy: {drain_s: 1m}
upstreams:
  - {name: openai, base_url: https://api.openai.com/v1, credential: env:OPENAI_API_KEY}
  - {name: local, base_url: http://127.0.0.1:4010/v1}
models:
  - name: gpt-4o-mini
    timeout_s: 90
    deployments:
      - {upstream: openai, model: gpt-4o-mini-2024-07-18, weight: 3}
      - {upstream: local, model: sim, id: spare, order: 1, price: {input: 0.15, output: "0.60", cache_read: 0.075}}
tenants:
  - name: acme
    limits: {requests_per_minute: 600, concurrency: 50}
    budgets: [{usd: 12.345678901, window: month}, {tokens: 1_000_000, window: day, id: daily}]
    models: [gpt-4o-mini]
    payloads: {store: true}
    unpriced: refuse
breaker: {open_s: 2}
label_aliases: off
"""


def problems(text: str) -> list[str]:
    """What a text is refused for, as people see it."""
    with pytest.raises(ConfigError) as caught:
        parse(text, file="h.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", BAD_FILES, ids=lambda path: path.name.removesuffix(".bad.yaml"))
def test_one_mistake_gives_one_message(path: Path) -> None:
    """Each file has one mistake and is refused for exactly that, at its line, with the hint written in its first line."""
    expected = path.read_text().splitlines()[0].removeprefix("# expect ")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [f"{path}:{expected}"] == [str(problem) for problem in caught.value.problems]


def test_there_are_enough_bad_files() -> None:
    """The table above is not empty by accident."""
    assert 70 <= len(BAD_FILES)


def test_a_good_file_says_what_it_says() -> None:
    """Every kind of value is read with its unit: durations, sizes, amounts, words, nested policies."""
    loaded = parse(GOOD, file="h.yaml")
    config, server = loaded.config, loaded.settings
    assert (4101, 0.25, 64 * 1024 * 1024, 60.0) == (
        server.port,
        server.detection.sweep_every_s,
        server.log.rotate_bytes,
        server.proxy.drain_s,
    )
    assert "sqlite:////var/lib/hephaestus/journal.db" == server.journal
    first, second = config.models[0].deployments
    assert ("openai/gpt-4o-mini-2024-07-18", "spare") == (first.deployment_id, second.deployment_id)
    assert second.price is not None
    assert (150_000_000, 600_000_000, 75_000_000) == (second.price.input, second.price.output, second.price.cache_read)
    (acme,) = config.tenants
    assert [("usd-month", Window.MONTH, 12_345_678_901, None), ("daily", Window.DAY, None, 1_000_000)] == [
        (budget.budget_id, budget.window, budget.usd, budget.tokens) for budget in acme.budgets
    ]
    assert (PayloadPolicy(store=True), None, Unpriced.REFUSE) == (acme.payloads, acme.cache, acme.unpriced)
    assert (BreakerPolicy(open_s=2.0), CachePolicy(), False) == (config.breaker, config.cache, config.label_aliases)


def test_an_empty_file_is_all_defaults() -> None:
    """Nothing written means defaults everywhere."""
    assert parse("", file="h.yaml").config == parse("# nothing\n", file="h.yaml").config
    assert 4001 == parse("", file="h.yaml").settings.port


def test_many_mistakes_are_told_at_once() -> None:
    """One look shows all mistakes in the order of their lines, and what follows from another mistake is not told."""
    text = """server: {prot: 1}
upstreams:
  - {name: a, base_url: nowhere}
models:
  - {name: m, deployments: [{upstream: a, model: x, weight: 0}]}
tenants:
  - {name: t, models: [m], budgets: [{window: day}]}
"""
    assert ["h.yaml:1", "h.yaml:3", "h.yaml:5", "h.yaml:7"] == [problem.split(": ")[0] for problem in problems(text)]


def test_what_refers_to_something_broken_is_not_blamed() -> None:
    """A deployment whose upstream has a mistake of its own is not told that the upstream does not exist."""
    text = (
        "upstreams:\n  - {name: a, base_url: nowhere}\nmodels:\n  - {name: m, deployments: [{upstream: a, model: x}]}\n"
    )
    assert 1 == len(problems(text))


def test_secrets_are_never_repeated() -> None:
    """A secret in place of a reference is refused without being shown."""
    text = "upstreams:\n  - {name: a, base_url: https://x/v1, credential: sk-very-secret-key}\n"
    assert "very-secret" not in problems(text)[0]


def test_anchors_and_merges_work() -> None:
    """A shared block can be merged into entries, whose own keys win."""
    text = """
upstreams:
  - &base {name: a, base_url: https://a.example/v1, connect_timeout_s: 1, idle_timeout_s: 2}
  - {<<: *base, name: b, idle_timeout_s: 3}
"""
    first, second = parse(text, file="h.yaml").config.upstreams
    assert ("b", first.base_url, 1.0, 3.0) == (
        second.name,
        second.base_url,
        second.connect_timeout_s,
        second.idle_timeout_s,
    )


def test_billion_laughs_are_refused_quickly() -> None:
    """A small file that unfolds without end is an error before it costs much."""
    lines = ["prices:", "  a: &a0 {input: 1, output: 1}"]
    text = "upstreams: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "\n".join(lines) + "\n"
    for level in range(1, 12):
        text += f"y{level}: &x{level} [" + ", ".join([f"*x{level - 1}"] * 10) + "]\n"
    started = time.process_time()
    assert problems(text)
    text = "tenants:\n  - name: t\n    models: &m [" + ", ".join(["m"] * 900) + "]\n"
    text += "".join(f"  - {{name: t{n}, models: *m}}\n" for n in range(900))
    assert any("unfolds to more than" in problem for problem in problems(text))
    assert time.process_time() - started < 10.0


def test_a_node_that_contains_itself_is_refused() -> None:
    """A recursive alias ends in a message, not in a loop."""
    assert problems("models: &a\n  - name: m\n    deployments: *a\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xfe", "1: is not UTF-8 text"),
        (b"a: 1\n\xff", "2: is not UTF-8 text"),
        (b"#" * 1_100_000, "is larger than"),
        (b"a: \x00\n", "not valid YAML"),
    ],
)
def test_bytes_that_are_no_configuration(tmp_path: Path, data: bytes, says: str) -> None:
    """Binary and oversized files are refused with the reason."""
    path = tmp_path / "h.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        load(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is named, and so is a folder in its place."""
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "h.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("abc: -[]{}&*!|>'\"#\n\t0123456789,<?%@`\\é\x85\U0001f600"), max_size=80))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    """No text makes the reader fail in another way than with a list of mistakes."""
    with suppress(ConfigError):
        parse(text, file="h.yaml")


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["server", "upstreams", "models", "name", "deployments", "tenants", "budgets", "usd", "prices", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_structure_is_accepted_or_refused(document: object) -> None:
    """No structure of YAML values makes the reader fail in another way than with a list of mistakes."""
    with suppress(ConfigError):
        parse(yaml.safe_dump(document, allow_unicode=True), file="h.yaml")
