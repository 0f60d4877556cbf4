"""The front door: bad requests of every kind, error shapes, headers on every answer, and the paths that are no calls."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.ids import new_id, ulid
from controlplane.contract.keys import hash_key
from controlplane.contract.records import Outcome
from controlplane.contract.snapshot import CachePolicy, KeyEntry, TenantPolicy
from proxy.app import CallIds
from proxy.head import _lowered
from tests.proxy.fakes import KEY, PEPPER, World, answer, completion, replies, until

GOOD = replies(answer(completion()))
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    ("param", "body"),
    [
        (None, b""),
        (None, b"{"),
        (None, b"null"),
        (None, b"[]"),
        (None, b'"text"'),
        (None, b"\xff\xfe{}"),
        (None, b'{"model":"gpt","messages":["\xc3\x28"]}'),
        (None, b"\x00" * 100),
        (None, b'{"model":"gpt",' + MESSAGES + b"} trailing"),
        (None, b'{"model":"gpt","messages":' + b"[" * 200_000),
        (None, b'{"model":"gpt","x":' + b'{"a":' * 100_000),
        ("model", b"{" + MESSAGES + b"}"),
        ("model", b'{"model":7,' + MESSAGES + b"}"),
        ("model", b'{"model":"",' + MESSAGES + b"}"),
        ("model", b'{"model":null,' + MESSAGES + b"}"),
        ("messages", b'{"model":"gpt"}'),
        ("messages", b'{"model":"gpt","messages":{}}'),
        ("messages", b'{"model":"gpt","messages":"hi"}'),
        ("stream", b'{"model":"gpt","stream":"yes",' + MESSAGES + b"}"),
        ("n", b'{"model":"gpt","n":0,' + MESSAGES + b"}"),
        ("n", b'{"model":"gpt","n":1000000,' + MESSAGES + b"}"),
        ("n", b'{"model":"gpt","n":1.5,' + MESSAGES + b"}"),
        ("max_tokens", b'{"model":"gpt","max_tokens":-1,' + MESSAGES + b"}"),
        ("max_tokens", b'{"model":"gpt","max_tokens":99999999999999999999999,' + MESSAGES + b"}"),
        ("max_completion_tokens", b'{"model":"gpt","max_completion_tokens":0,' + MESSAGES + b"}"),
        ("stream_options", b'{"model":"gpt","stream_options":[],' + MESSAGES + b"}"),
    ],
)
async def test_a_bad_body_is_a_400_that_says_what_is_wrong(world: World, param: str | None, body: bytes) -> None:
    """OpenAI's error shape, a stable code, the field at fault; nothing goes upstream and nothing is logged as a bug."""
    upstream = await world.upstream(GOOD)
    world.apply()
    response = await world.client.post("/v1/chat/completions", content=body)
    error = response.json()["error"]
    assert (400, "malformed", "invalid_request_error") == (response.status_code, error["code"], error["type"])
    assert param == error["param"]
    assert error["message"]
    assert [] == upstream.received
    assert "client" == response.headers["x-heph-error-source"]


@pytest.mark.parametrize(
    ("says", "headers", "body"),
    [
        ("it is empty", {}, b""),
        ("`content-encoding: gzip`: send it as it is", {"content-encoding": "gzip"}, b"\x1f\x8b\x08\xff"),
        ("it came as `text/plain`: send JSON", {"content-type": "text/plain"}, b"model=gpt"),
    ],
)
async def test_a_body_that_is_no_json_is_told_by_its_headers(
    world: World, says: str, headers: dict[str, str], body: bytes
) -> None:
    """Compressed, a form, or nothing: the message says which, and what to send instead."""
    await world.upstream(GOOD)
    world.apply()
    response = await world.client.post("/v1/chat/completions", content=body, headers=headers)
    error = response.json()["error"]
    assert (400, "malformed") == (response.status_code, error["code"])
    assert says in error["message"]


@pytest.mark.parametrize("body", [b'{"model":"gpt"}', b'{"model":"gpt","input":7}', b'{"model":"gpt","input":{}}'])
async def test_a_bad_embeddings_request_is_a_400(world: World, body: bytes) -> None:
    """`input` has to be there, a text or an array."""
    await world.upstream(GOOD)
    world.apply()
    response = await world.client.post("/v1/embeddings", content=body)
    assert (400, "input") == (response.status_code, response.json()["error"]["param"])


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer sk-heph-other"},
        {"authorization": "Bearer " + "x" * 5000},
        {"authorization": "Bearer \xff\xfe"},
        {"authorization": "", "x-api-key": "nope"},
    ],
)
async def test_a_key_that_is_none_is_denied(world: World, headers: dict[str, str]) -> None:
    """401 in OpenAI's shape, and a record without a tenant."""
    await world.upstream(GOOD)
    world.apply()
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    response = await world.client.post("/v1/chat/completions", content=b"{}", headers=raw)
    assert (401, "denied") == (response.status_code, response.json()["error"]["code"])
    (record,) = world.records()
    assert (Outcome.DENIED, "") == (record.outcome, record.tenant)


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
async def test_the_key_may_come_as_other_clients_send_it(world: World, header: str) -> None:
    """`x-api-key` and `api-key` do as well as a bearer token."""
    await world.upstream(GOOD)
    world.apply()
    headers = {"authorization": "", header: KEY}
    assert 200 == (await world.chat(headers=headers)).status_code


@pytest.mark.parametrize("pieces", [1, 7, 300])
async def test_a_list_in_several_lines_reaches_the_upstream_whole(world: World, pieces: int) -> None:
    """Some SDKs write each beta flag in a line of its own; none is lost, in however many pieces the request comes."""
    upstream = await world.upstream(GOOD)
    world.apply()
    body = msgspec.json.encode({"model": "gpt", "messages": [{"role": "user", "content": "OpenAI-Beta: no\r\n"}]})
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        "OpenAI-Beta: one",
        f"Authorization: Bearer {KEY}",
        "openai-beta:  two,three ",
        "OpenAI-Beta: four",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        "",
    ]
    request = "\r\n".join(head).encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rpartition(":")[2]))
    size = -(-len(request) // pieces)
    for at in range(0, len(request), size):
        writer.write(request[at : at + size])
        await writer.drain()
        await asyncio.sleep(0)
    assert b"HTTP/1.1 200" == (await reader.read())[:12]
    writer.close()
    assert "one, two,three, four" == upstream.received[-1].headers["openai-beta"]


async def test_an_expired_key_is_denied(world: World) -> None:
    """From its expiry on a key is worth nothing."""
    await world.upstream(GOOD)
    world.apply(keys=(KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="k", tenant="acme", expires_us=1),))
    assert 401 == (await world.chat()).status_code


@pytest.mark.parametrize(
    ("trusted", "lines", "status"),
    [
        (
            ("127.0.0.0/8",),
            ["X-Forwarded-For: 198.51.100.9", "x-forwarded-for: 192.0.2.7", "X-Forwarded-For: 198.51.100.1"],
            403,
        ),  # in two spellings
        ((), [], 403),
        ((), ["X-Forwarded-For: 192.0.2.7"], 403),  # a client's own word
        (("127.0.0.0/8",), ["X-Forwarded-For: 192.0.2.7"], 200),
        (
            ("127.0.0.0/8",),
            ["X-Forwarded-For: 192.0.2.7, 198.51.100.1"],
            403,
        ),  # the load balancer added to what the client wrote
        (
            ("127.0.0.0/8",),
            ["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 198.51.100.1"],
            403,
        ),  # or a line of its own
        (("127.0.0.0/8",), ["X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 192.0.2.7"], 200),
        (("127.0.0.0/8",), [], 403),
    ],
)
async def test_a_key_may_be_used_from_its_networks_alone(
    tmp_path: Path, trusted: tuple[str, ...], lines: list[str], status: int
) -> None:
    """Through a whole worker: by the address of the connection, or by what a load balancer that is trusted says of it."""
    world = await World(tmp_path).start(trusted_proxies=trusted)
    try:
        await world.upstream(GOOD)
        key = KeyEntry(hash_key(KEY.encode(), PEPPER), "k", "acme", addresses=("192.0.2.0/24",))
        world.apply(keys=(key,))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rpartition(":")[2]))
        head = [
            "GET /v1/models HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {KEY}",
            *lines,
            "Connection: close",
            "",
            "",
        ]
        writer.write("\r\n".join(head).encode())
        answered = await reader.read()
        writer.close()
        assert status == int(answered.split(b" ", 2)[1])
        local = msgspec.structs.replace(key, addresses=("127.0.0.0/8",))
        world.apply(keys=(local,))
        assert 200 == (await world.client.get("/v1/models")).status_code
    finally:
        await world.stop()


async def test_models_that_are_not_allowed_are_forbidden_and_not_listed(world: World) -> None:
    """The tenant's and the key's lists both count."""
    await world.upstream(GOOD)
    world.apply(tenant=TenantPolicy(id="acme", models=("other",)))
    response = await world.chat()
    assert (403, "forbidden", "model") == (
        response.status_code,
        response.json()["error"]["code"],
        response.json()["error"]["param"],
    )
    assert [] == (await world.client.get("/v1/models")).json()["data"]


async def test_the_tenants_ceiling_for_an_answer_holds(world: World) -> None:
    """Above it: 403; without a ceiling of its own, the request gets the tenant's."""
    upstream = await world.upstream(GOOD)
    world.apply(tenant=TenantPolicy(id="acme", max_output_tokens=100, cache=CachePolicy(enabled=False)))
    assert 403 == (await world.chat(max_tokens=101)).status_code
    await world.chat(max_tokens=100)
    await world.chat()
    sent = [request.document for request in upstream.received]
    assert [(100, None), (None, 100)] == [(d.get("max_tokens"), d.get("max_completion_tokens")) for d in sent]


async def test_the_rate_limit_names_itself_and_says_when_to_come_back(world: World) -> None:
    """429 with whole seconds of `retry-after` and the limit family of headers, on success as on refusal."""
    await world.upstream(GOOD)
    world.apply(tenant=TenantPolicy(id="acme", requests_per_minute=2, cache=CachePolicy(enabled=False)))
    first = await world.chat()
    assert ("2", "1") == (
        first.headers["x-ratelimit-limit-requests"],
        first.headers["x-ratelimit-remaining-requests"],
    )
    await world.chat()
    third = await world.chat()
    assert (429, "rate_limited", "true") == (
        third.status_code,
        third.json()["error"]["code"],
        third.headers["x-should-retry"],
    )
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert f"the next one in {third.headers['retry-after']} s" in third.json()["error"]["message"]


async def test_a_body_too_large_is_refused_declared_or_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    """413 by its declared size, or as soon as a chunked body exceeds the limit; the record knows the tenant."""
    world = await World(tmp_path_factory.mktemp("large")).start(body_bytes_max=1000)
    try:
        await world.upstream(GOOD)
        world.apply()

        async def pieces() -> object:
            for _ in range(20):
                yield b"x" * 100

        for content in (b"x" * 1001, pieces()):
            response = await world.client.post("/v1/chat/completions", content=content)  # type: ignore[arg-type]
            assert (413, "too_large") == (response.status_code, response.json()["error"]["code"])
        assert [(Outcome.TOO_LARGE, "acme")] * 2 == [(record.outcome, record.tenant) for record in world.records()]
    finally:
        await world.stop()


ALWAYS = {"x-heph-call-id", "x-heph-cache", "cache-status", "x-heph-attempts", "x-heph-overhead-ms"}


async def test_every_answer_says_what_happened_to_it(world: World) -> None:
    """The same family of headers on success, in a stream and on a refusal."""
    await world.upstream(GOOD)
    world.apply()
    for response in (await world.chat(), await world.chat(model="none"), await world.client.get("/v1/models")):
        assert ALWAYS | {"x-heph-cost-usd", "x-heph-cost-state"} <= response.headers.keys()
        assert float(response.headers["x-heph-overhead-ms"]) >= 0


async def test_models_are_listed_as_openai_does_and_metered_as_calls(world: World) -> None:
    """The list, one model by name, and one that is not there."""
    await world.upstream(GOOD)
    world.apply()
    listed = (await world.client.get("/models")).json()
    assert ("list", ["gpt"]) == (listed["object"], [row["id"] for row in listed["data"]])
    assert "gpt" == (await world.client.get("/v1/models/gpt")).json()["id"]
    assert 404 == (await world.client.get("/v1/models/none")).status_code
    assert ["models"] * 3 == [record.operation for record in world.records()]


@pytest.mark.parametrize(
    ("status", "method", "path"),
    [
        (200, "GET", "/livez"),
        (200, "GET", "/readyz"),
        (200, "GET", "/metrics"),
        (200, "GET", "/"),
        (404, "GET", "/v1/vector_stores"),
        (404, "POST", "/v1/chat/completions/"),
        (404, "POST", "/%00"),
        (405, "GET", "/v1/chat/completions"),
        (405, "DELETE", "/v1/models/gpt"),
        (405, "POST", "/metrics"),
    ],
)
async def test_what_is_no_call(world: World, status: int, method: str, path: str) -> None:
    """Probes and metrics need no key; what is not there is said in OpenAI's shape, and nothing of it is recorded."""
    await world.upstream(GOOD)
    world.apply()
    response = await world.client.request(method, world.url + path)
    assert status == response.status_code
    if status >= 400:
        assert response.json()["error"]["code"] in ("not_found", "method_not_allowed")
    assert [] == world.records()


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/v1/messages", "/v1/messages"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1//responses/resp_1", "/v1/responses/resp_1"),
    ],
)
async def test_a_base_url_with_something_too_many_is_told(world: World, path: str, near: str) -> None:
    """The most common mistake with SDKs: one wants `/v1` in its base URL, the other adds it."""
    response = await world.client.post(world.url + path, content=b"{}")
    assert 404 == response.status_code
    assert f"but {near} is" in response.json()["error"]["message"]


async def test_what_became_no_call_has_an_id_and_is_counted(world: World) -> None:
    """A path that is not there, a wrong method, a worker with no snapshot: an id each, the same in the body for Anthropic's clients."""
    anthropic = {"anthropic-version": "2023-06-01"}
    refused = [
        await world.client.get(world.url + "/nowhere", headers=anthropic),
        await world.client.put(world.url + "/v1/chat/completions"),
        await world.client.post(world.url + "/metrics"),
        await world.chat(),
    ]
    ids = [response.headers["x-heph-call-id"] for response in refused]
    assert [404, 405, 405, 503] == [response.status_code for response in refused]
    assert [("call_", len(new_id("call")))] * 4 == [(name[:5], len(name)) for name in ids]
    assert 4 == len(set(ids))
    assert ids[0] == refused[0].json()["request_id"] == refused[0].headers["request-id"]
    text = (await world.client.get("/metrics")).text
    for code, count in (("not_found", 1), ("method_not_allowed", 2), ("not_ready", 1)):
        assert f'heph_proxy_refused_requests_total{{code="{code}",worker="0"}} {count}.0' in text
    assert [] == world.records()


@pytest.mark.parametrize(
    ("allow", "method", "path"),
    [
        ("POST", "PUT", "/v1/chat/completions"),
        ("GET, DELETE", "POST", "/v1/responses/resp_1"),
        ("GET, HEAD", "POST", "/metrics"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(world: World, allow: str, method: str, path: str) -> None:
    """As HTTP asks of a 405, and in the message."""
    world.apply(urls=())
    response = await world.client.request(method, world.url + path)
    assert (405, allow) == (response.status_code, response.headers["allow"])


async def test_without_a_snapshot_the_worker_is_not_ready_and_says_503(world: World) -> None:
    """Our own trouble is never a 401."""
    assert (503, 200) == (
        (await world.client.get("/readyz")).status_code,
        (await world.client.get("/livez")).status_code,
    )
    response = await world.chat()
    assert (503, "not_ready", "gateway") == (
        response.status_code,
        response.json()["error"]["code"],
        response.headers["x-heph-error-source"],
    )


async def test_labels_come_from_headers_aliases_and_the_body(world: World) -> None:
    """Our own headers win, then the aliases of other proxies, then the body's own fields; nobody can say that a call books another."""
    await world.upstream(GOOD)
    world.apply()
    trace = "0af7651916cd43dd8448eb211c80319c"
    await world.chat(
        headers={
            "x-heph-agent": "planner",
            "x-heph-tags": '{"team":"a","n":1,"deep":{"x":1},"heph-settles":"resp_1"}',
            "x-claude-code-session-id": "s-1",
            "helicone-user-id": "u-alias",
            "x-heph-user": "u-own",
            "helicone-property-env": "prod",
            "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        },
        user="u-body",
        metadata={"plan": "pro", "team": "b", "heph-settles": "resp_2"},
    )
    await world.chat(user="u-body")
    first, second = world.records()
    assert ("planner", "s-1", "u-own", trace) == (first.agent, first.session, first.user, first.trace_id)
    assert {"team": "a", "n": "1", "env": "prod", "plan": "pro"} == first.tags
    assert "u-body" == second.user
    world.apply(label_aliases=False)
    await world.chat(headers={"x-claude-code-session-id": "s-1", "x-heph-session": ""})
    assert "" == world.records()[2].session


async def test_labels_are_bounded_and_never_break_a_call(world: World) -> None:
    """Too long, too many, not JSON: cut or left out."""
    await world.upstream(GOOD)
    world.apply()
    many = json.dumps({f"t{n}": "v" * 300 for n in range(150)})
    for tags in (many, "{", "[1]", "null"):
        response = await world.chat(headers={"x-heph-agent": "a" * 5000, "x-heph-tags": tags})
        assert 200 == response.status_code
    record = world.records()[0]
    assert (256, 32) == (len(record.agent), len(record.tags))
    assert {256} == {len(value) for value in record.tags.values()}


async def raw(world: World, data: bytes, *, end: bool = False) -> bytes:
    """What the worker answers to these very bytes, until it closes the connection."""
    url = httpx.URL(world.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(data)
    if end:
        writer.write_eof()
    try:
        async with asyncio.timeout(60.0):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
async def test_what_is_not_http_gets_a_clear_answer(world: World, data: bytes) -> None:
    """400 in OpenAI's shape, and the connection is closed."""
    world.apply(urls=("http://127.0.0.1:9/v1",))
    response = await raw(world, data)
    assert response.startswith(b"HTTP/1.1 400")
    assert b'"code":"malformed"' in response
    assert b"\r\nx-heph-call-id: call_" in response
    assert b"\r\nx-heph-error-source: client\r\n" in response


async def test_slow_and_endless_requests_are_cut_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A head too large, a head or a body that does not end: each is closed within the time, and nothing is left behind."""
    world = await World(tmp_path_factory.mktemp("slow")).start(body_timeout_s=0.1, header_bytes_max=4096)
    try:
        world.apply(urls=("http://127.0.0.1:9/v1",))
        head = b"POST /v1/chat/completions HTTP/1.1\r\n"
        late = await raw(world, head)
        assert late.startswith(b"HTTP/1.1 408")
        assert b"\r\nx-heph-call-id: call_" in late
        assert b"" == await raw(world, head + b"content-length: 100\r\n\r\n{")
        for end in (b"", b"\r\n\r\n"):
            assert (await raw(world, head + b"x: " + b"y" * 5000 + end)).startswith(b"HTTP/1.1 431")
        await until(lambda: world.worker.app.inflight == 0)
        assert [] == world.records()
    finally:
        await world.stop()


async def test_metrics_tell_calls_attempts_tokens_and_cost(world: World) -> None:
    """After one call every figure of it is there."""
    await world.upstream(GOOD)
    world.apply()
    await world.chat()
    text = (await world.client.get("/metrics")).text
    for line in (
        'heph_proxy_calls_total{cache="bypass",operation="chat",outcome="ok",worker="0"} 1.0',
        'heph_proxy_attempts_total{deployment="u0/m",error="",worker="0"} 1.0',
        'heph_proxy_tokens_total{kind="input",worker="0"} 9.0',
        'heph_proxy_cost_nanousd_total{worker="0"} 15000.0',
        'heph_proxy_breaker_state{deployment="u0/m",worker="0"} 0.0',
        'heph_proxy_call_duration_seconds_count{worker="0"} 1.0',
        'heph_proxy_inflight_calls{worker="0"} 0.0',
    ):
        assert line in text


def test_ids_of_calls_are_ulids_and_never_the_same() -> None:
    """Thousands in a row: as `new_id` writes them, in the order of their time, each once."""
    ids = CallIds()
    made = [ids.new(time.time_ns() // 1000) for _ in range(3_000)]
    now = new_id("call")
    assert 3_000 == len(set(made))
    assert [len(now)] * 3_000 == [len(item) for item in made]
    assert made[0][:10] == now[:10]  # of the same hours
    assert sorted(item[:15] for item in made) == [item[:15] for item in made]
    assert set("".join(item.removeprefix("call_") for item in made)) == set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


@given(st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=20), st.integers(0, 2_000))
def test_the_id_of_a_call_says_when_it_began(moments_ms: list[int], later_ms: int) -> None:
    """In any order of moments, near each other or far, the time is that of a ULID of the same millisecond."""
    ids = CallIds()
    for moment_ms in (*moments_ms, min(moments_ms[-1] + later_ms, 2**48 - 1)):
        expected = "call_" + ulid(now_ms=moment_ms, entropy=bytes(10))[:10]
        assert expected == ids.new(moment_ms * 1000 + 999)[:15]


async def test_a_list_is_not_looked_for_in_what_was_thrown_away(world: World) -> None:
    """The end of a body that was too large comes with the head of the next request; no word of it reaches the upstream."""
    upstream = await world.upstream(GOOD)
    world.apply()
    body = msgspec.json.encode({"model": "gpt", "messages": [{"role": "user", "content": "hi"}]})
    head = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: "
    size = world.worker.settings.body_bytes_max + 1
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rpartition(":")[2]))
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}{size}\r\n\r\n".encode())
    assert b"413" in await reader.readline()
    last = b"\nOpenAI-Beta: evil\rinjected: yes\r\n"
    piece = 1 << 20
    for at in range(0, size - len(last), piece):
        writer.write(b"x" * min(piece, size - len(last) - at))
        await writer.drain()
    second = f"POST /v1/chat/completions HTTP/1.1\r\nOpenAI-Beta: one\r\nConnection: close\r\n{head}{len(body)}\r\n\r\n"
    writer.write(last + second.encode() + body)
    await reader.read()
    writer.close()
    assert "one" == upstream.received[-1].headers["openai-beta"]


@pytest.mark.parametrize(("pieces", "names", "remembered"), [(1, 3, 1), (1, 90, 0), (9, 90, 0)])
async def test_many_names_of_headers_are_not_remembered(world: World, pieces: int, names: int, remembered: int) -> None:
    """What anybody can send without a key stays small in memory, in however many pieces it comes."""
    head = [f"X-{at}{'a' * 200}: 1" for at in range(names)]
    request = "\r\n".join(["GET /v1/models HTTP/1.1", *head, "Connection: close", "", ""]).encode()
    before = _lowered.cache_info().misses
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rpartition(":")[2]))
    size = -(-len(request) // pieces)
    for at in range(0, len(request), size):
        writer.write(request[at : at + size])
        await writer.drain()
        for _ in range(10):  # so that each is read alone
            await asyncio.sleep(0)
    assert b"HTTP/1.1 " == (await reader.read())[:9]
    writer.close()
    assert remembered == _lowered.cache_info().misses - before
