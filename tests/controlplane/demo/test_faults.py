"""Which fault meets which call, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.clock import ManualClock
from controlplane.demo.faults import Fault, FaultError, FaultKind, FaultMatch, Faults, load_fault_script


def faults_of(*script: Fault, clock: ManualClock, seed: int = 0) -> Faults:
    """Faults on a clock that stands still."""
    return Faults(script, seed=seed, now=clock.monotonic)


def met(
    faults: Faults,
    *,
    upstream: str = "primary",
    port: int = 1,
    path: str = "/v1/x",
    key: str = "sk-a",
    model: str = "gpt-4o",
) -> FaultKind | None:
    """The kind that a call meets."""
    fault = faults.pick(upstream=upstream, port=port, path=path, key=key, model=lambda: model)
    return None if fault is None else fault.kind


def test_time_line() -> None:
    """A fault is in force from at_s for for_s, its end excluded."""
    clock = ManualClock()
    faults = faults_of(Fault(FaultKind.OUTAGE_503, at_s=10, for_s=5), clock=clock)
    seen = []
    for step in (0, 9.5, 0.5, 4.5, 0.5):
        clock.move(step)
        seen.append(met(faults))
    assert [None, None, FaultKind.OUTAGE_503, FaultKind.OUTAGE_503, None] == seen


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(FaultKind.HANG), True),
        (Fault(FaultKind.HANG, upstream="primary"), True),
        (Fault(FaultKind.HANG, upstream="1"), True),
        (Fault(FaultKind.HANG, upstream="secondary"), False),
        (Fault(FaultKind.HANG, match=FaultMatch(model="gpt-4*")), True),
        (Fault(FaultKind.HANG, match=FaultMatch(model="o3")), False),
        (Fault(FaultKind.HANG, match=FaultMatch(key="sk-a")), True),
        (Fault(FaultKind.HANG, match=FaultMatch(key="sk-b")), False),
        (Fault(FaultKind.HANG, match=FaultMatch(path="/v1/*")), True),
        (Fault(FaultKind.HANG, match=FaultMatch(path="/v1/embeddings")), False),
        (Fault(FaultKind.HANG, match=FaultMatch(share=0)), False),
        (Fault(FaultKind.OUTAGE_REFUSED), False),
    ],
)
def test_match(fault: Fault, *, expected: bool) -> None:
    """A fault meets the calls that every given field matches; a refused connection never becomes a call."""
    assert (fault.kind if expected else None) == met(faults_of(fault, clock=ManualClock()))


def test_first_fault_that_matches_wins_and_is_counted() -> None:
    """Faults are asked in their order, and only the one that met the call counts it."""
    faults = faults_of(
        Fault(FaultKind.HANG, match=FaultMatch(key="sk-b")),
        Fault(FaultKind.OUTAGE_500),
        Fault(FaultKind.HANG),
        clock=ManualClock(),
    )
    assert met(faults) is FaultKind.OUTAGE_500
    assert [0, 1, 0] == [status.hits for status in faults.status()]


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_share_is_kept_and_repeats_with_its_seed(share: float, seed: int) -> None:
    """A share meets about that part of the calls, and the same ones again for the same seed."""
    runs = []
    for _ in range(2):
        faults = faults_of(Fault(FaultKind.HANG, match=FaultMatch(share=share)), clock=ManualClock(), seed=seed)
        runs.append([met(faults) is not None for _ in range(1000)])
    assert runs[0] == runs[1]
    assert share == pytest.approx(sum(runs[0]) / 1000, abs=0.08)


def test_same_id_replaces_and_clear_removes() -> None:
    """A fault with a known id takes the place of the old one; clearing removes one or all."""
    faults = faults_of(clock=ManualClock())
    assert not faults
    faults.add(Fault(FaultKind.HANG, id="a"))
    faults.add(Fault(FaultKind.OUTAGE_500, id="a"))
    assert [FaultKind.OUTAGE_500] == [status.fault.kind for status in faults.status()]
    other = faults.add(Fault(FaultKind.HANG))
    assert (0, 1) == (faults.clear("nothing"), faults.clear(other.id))
    assert faults.clear() == 1
    assert not faults


def test_status_tells_the_time_line() -> None:
    """The status of a fault says whether it is in force, when it starts and when it ends."""
    clock = ManualClock()
    faults = faults_of(Fault(FaultKind.HANG, at_s=10, for_s=5), Fault(FaultKind.HANG), clock=clock)
    clock.move(4)
    first, second = faults.status()
    assert (False, 6.0, 11.0) == (first.active, first.starts_in_s, first.ends_in_s)
    assert (True, 0.0, None) == (second.active, second.starts_in_s, second.ends_in_s)


def test_refused_is_by_upstream() -> None:
    """A refused outage closes only the upstream that it addresses."""
    faults = faults_of(Fault(FaultKind.OUTAGE_REFUSED, upstream="primary"), clock=ManualClock())
    assert faults.refused(upstream="primary", port=1)
    assert not faults.refused(upstream="secondary", port=2)


def test_script_is_read(tmp_path: Path) -> None:
    """A YAML file gives its faults; an empty one gives none."""
    file = tmp_path / "faults.yaml"
    file.write_text(
        "faults:\n  - kind: rate_limited\n    at_s: 60\n    for_s: 30\n    match: {model: gpt-4o*, share: 0.3}\n"
    )
    expected = Fault(FaultKind.RATE_LIMITED, at_s=60, for_s=30, match=FaultMatch(model="gpt-4o*", share=0.3))
    assert (expected,) == load_fault_script(file)
    file.write_text("")
    assert () == load_fault_script(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("faults: [{kind: earthquake}]", "earthquake"),
        ("faults: [{at_s: 3}]", "kind"),
        ("faults: [{kind: hang, at_s: -1}]", ">= 0"),
        ("faults: [{kind: hang, matches: {}}]", "matches"),
        ("faults: [{kind: hang, match: {share: 2}}]", "<= 1"),
        ("faults: [{kind: outage_refused, match: {model: a}}]", "leave out `match`"),
        ("fault: []", "fault"),
        ("faults: {", "not YAML"),
        ("- hang", "object"),
    ],
)
def test_bad_script_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    """A file that cannot be meant is refused, and the message names the file and the mistake."""
    file = tmp_path / "faults.yaml"
    file.write_text(text)
    with pytest.raises(FaultError) as refused:
        load_fault_script(file)
    assert str(file) in str(refused.value)
    assert message in str(refused.value)


def test_missing_script_is_refused(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(FaultError, match=r"nothing\.yaml: cannot be read"):
        load_fault_script(tmp_path / "nothing.yaml")
