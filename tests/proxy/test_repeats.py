"""Requests that come again word for word: they are answered as if they had been read again, and room for them is bounded."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.keys import hash_key
from controlplane.contract.snapshot import CachePolicy, KeyEntry, TenantPolicy
from proxy.dialects.dialect import RequestView
from proxy.repeats import Known, Repeats
from proxy.transports.cache_key import cache_key
from tests.proxy.fakes import KEY, PEPPER, World, answer, completion, replies

GOOD = replies(answer(completion()))
CACHING = TenantPolicy(id="acme", cache=CachePolicy(enabled=True))
NARROW = "sk-heph-narrow"


def known(name: str) -> Known:
    """What a body says that is of no interest here."""
    return Known(RequestView(model=name), b"scope", b"key")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=400)), max_size=60), st.integers(20_000, 60_000))
def test_whatever_comes_its_bytes_stay_within_the_limit(bodies: list[tuple[str, bytes]], bytes_max: int) -> None:
    """After any bodies of any tenants the figure is the sum of what is known, and at most the limit."""
    repeats = Repeats(bytes_max=bytes_max)
    for tenant, body in bodies:
        repeats.note(tenant, "chat", body, known(tenant))
        assert bytes_max >= repeats.bytes_used
    found = {item for item in bodies if repeats.get(item[0], "chat", item[1]) is not None}
    assert len(repeats) == len(found)
    assert repeats.bytes_used == sum(len(body) + len(b"scope") + 1024 for _, body in found)
    assert all(known(tenant) == repeats.get(tenant, "chat", body) for tenant, body in found)


def test_a_body_is_known_to_its_tenant_and_operation_alone() -> None:
    """Another tenant, another operation and a body with one byte more know nothing of it."""
    repeats = Repeats(bytes_max=1 << 20)
    repeats.note("acme", "chat", b"{}", known("m"))
    others = [("globex", "chat", b"{}"), ("acme", "messages", b"{}"), ("acme", "chat", b"{} ")]
    assert [known("m"), None, None, None] == [repeats.get(*body) for body in [("acme", "chat", b"{}"), *others]]


def test_a_body_that_would_take_the_place_of_many_is_not_kept() -> None:
    """One body may take a sixteenth of the room."""
    repeats = Repeats(bytes_max=160_000)
    repeats.note("acme", "chat", b"x" * 9_000, known("m"))
    assert (0, 0) == (len(repeats), repeats.bytes_used)


def test_what_headers_and_labels_make_large_counts() -> None:
    """Small bodies under large headers, and under many labels, take no more room than there is."""
    repeats = Repeats(bytes_max=1 << 20)
    for number in range(200):
        wide = Known(RequestView(model="m"), bytes(30_000), b"key")
        repeats.note("acme", "chat", b"%d" % number, wide)
    assert 33 == len(repeats)
    labels = {str(number): "" for number in range(100)}
    for number in range(200):
        repeats.note("acme", "chat", b"%d" % number, Known(RequestView(model="m", metadata=labels), b"", b"key"))
    assert 41 > len(repeats)
    assert repeats.bytes_used <= 1 << 20
    repeats.note("acme", "chat", b"{}", Known(RequestView(model="m"), bytes(100_000), b"key"))
    assert repeats.get("acme", "chat", b"{}") is None


async def test_a_request_is_known_once_memory_has_answered_it(world: World) -> None:
    """The second of equal requests teaches it, the third is not read, and all say the same; its key is that of the request."""
    await world.upstream(GOOD)
    world.apply(tenant=CACHING)
    body = json.dumps({"model": "gpt", "messages": [], "user": "eve", "metadata": {"team": "red"}}).encode()
    answers = []
    for count in (0, 0, 1):
        assert count == len(world.worker.cache.repeats)
        answers.append(await world.client.post("/v1/chat/completions", content=body))
    assert ["miss", "hit", "hit"] == [one.headers["x-heph-cache"] for one in answers]
    assert {completion()} == {one.content for one in answers}
    assert [("eve", {"team": "red"})] * 3 == [(one.user, one.tags) for one in world.records()]
    found = world.worker.cache.repeats.get("acme", "chat", body)
    assert found is not None
    assert cache_key(scope=found.scope, body=body) == found.key


async def test_a_known_body_opens_nothing_to_a_key_that_may_less(world: World) -> None:
    """What is known of a body says nothing about who may send it: a key without the model is refused as ever."""
    await world.upstream(GOOD)
    keys = (
        KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="key_1", tenant="acme"),
        KeyEntry(hash=hash_key(NARROW.encode(), PEPPER), id="key_2", tenant="acme", models=("other",)),
    )
    world.apply(tenant=CACHING, keys=keys)
    for _ in range(3):
        assert 200 == (await world.chat()).status_code
    assert 1 == len(world.worker.cache.repeats)
    assert 403 == (await world.chat(headers={"authorization": f"Bearer {NARROW}"})).status_code


async def test_headers_that_vary_the_answer_vary_it_for_a_known_body_too(world: World) -> None:
    """A known body with another `openai-beta` is another request to the cache."""
    upstream = await world.upstream(GOOD)
    world.apply(tenant=CACHING)
    for _ in range(3):
        await world.chat()
    other = [(await world.chat(headers={"openai-beta": "x=1"})).headers["x-heph-cache"] for _ in range(2)]
    assert (["miss", "hit"], 2) == (other, len(upstream.received))
