"""The webhook sink against a real receiver."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from controlplane.alerts.alert import AlertSink
from controlplane.alerts.sinks.base import Delivery, Result
from controlplane.alerts.sinks.webhook import WebhookSink
from tests.controlplane.alerts.receiver import SECRET, receiving
from tests.controlplane.alerts.test_alert import note


def sink_to(
    url: str, *, secret: str | None = "env:HOOK", local: bool = True, timeout_s: float = 5.0, value: str = SECRET
) -> WebhookSink:
    """A sink to an address."""
    config = AlertSink(name="ops", url=url, secret=secret, allow_private=("127.0.0.0/8",) if local else ())
    return WebhookSink(config, timeout_s=timeout_s, now_us=lambda: time.time_ns() // 1000, environ={"HOOK": value})


async def deliver(sink: WebhookSink) -> Delivery:
    """One delivery, then close."""
    try:
        return await sink.deliver("msg_1", note())
    finally:
        await sink.aclose()


async def test_a_receiver_verifies_the_signature_with_the_public_library() -> None:
    """Id, timestamp and signature are as Standard Webhooks wants them; host and path are as configured."""
    async with receiving() as receiver:
        assert Delivery(Result.OK, "status 200") == await deliver(sink_to(receiver.url))
        (got,) = receiver.got
        assert "incident_1" == Webhook(SECRET).verify(got.body, got.headers)["subject"]
        assert ("/hook?team=a", f"127.0.0.1:{receiver.port}", "msg_1") == (
            got.path,
            got.headers["host"],
            got.headers["webhook-id"],
        )
        assert "application/cloudevents+json; charset=utf-8" == got.headers["content-type"]


async def test_two_secrets_sign_twice_for_rotation(tmp_path: Path) -> None:
    """While a secret is changed, receivers with the old and with the new one both verify."""
    new = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    (tmp_path / "secret").write_text(f"{new} {SECRET}\n")
    async with receiving() as receiver:
        await deliver(sink_to(receiver.url, secret=f"file:{tmp_path}/secret"))
        for secret in (SECRET, new):
            Webhook(secret).verify(receiver.got[0].body, receiver.got[0].headers)


async def test_without_a_secret_nothing_is_signed() -> None:
    """A sink without a secret sends no signature header."""
    async with receiving() as receiver:
        await deliver(sink_to(receiver.url, secret=None))
        assert "webhook-signature" not in receiver.got[0].headers


@pytest.mark.parametrize(
    ("status", "extra", "expected"),
    [
        (202, "", Delivery(Result.OK, "status 202")),
        (302, "location: http://127.0.0.1:1/\r\n", Delivery(Result.RETRY, "status 302")),
        (400, "", Delivery(Result.RETRY, "status 400")),
        (410, "", Delivery(Result.GONE, "status 410")),
        (429, "retry-after: 90\r\n", Delivery(Result.RETRY, "status 429", 90.0)),
        (429, "retry-after: Fri, 01 Jan 2027 00:00:00 GMT\r\n", Delivery(Result.RETRY, "status 429")),
        (503, "retry-after: 99999999\r\n", Delivery(Result.RETRY, "status 503", 86_400.0)),
    ],
)
async def test_answers_are_understood(status: int, extra: str, expected: Delivery) -> None:
    """2xx is delivered, redirects are failures and not followed, 410 is final, retry-after is heard within bounds."""
    async with receiving() as receiver:
        receiver.status, receiver.extra = status, extra
        assert expected == await deliver(sink_to(receiver.url))
        assert 1 == len(receiver.got)


async def test_a_private_address_is_refused_without_a_connection() -> None:
    """Unless it is allow-listed, a loopback address is never connected to."""
    async with receiving() as receiver:
        delivery = await deliver(sink_to(receiver.url, local=False))
        assert (Result.REFUSED, []) == (delivery.result, receiver.got)
        assert "allow_private" in delivery.detail


async def test_nobody_listening_is_tried_again() -> None:
    """A refused connection is the network's trouble."""
    async with receiving() as receiver:
        url = receiver.url
    assert Result.RETRY == (await deliver(sink_to(url))).result


async def test_a_receiver_that_never_answers_is_given_up_in_time() -> None:
    """The whole try has one time limit."""
    async with receiving() as receiver:
        receiver.hang = True
        assert Delivery(Result.RETRY, "no answer within 0.2 s") == await deliver(sink_to(receiver.url, timeout_s=0.2))


async def test_a_huge_answer_is_not_read_to_its_end() -> None:
    """What a receiver sends back is read up to a limit; the delivery still counts."""
    async with receiving() as receiver:
        receiver.answer = b"x" * 10_000_000
        assert Result.OK == (await deliver(sink_to(receiver.url))).result


@pytest.mark.parametrize(
    ("secret", "value"), [("env:HOOK", "not base64 %%"), ("env:NONE", SECRET), ("file:/nowhere", "")]
)
async def test_a_bad_secret_is_tried_again_and_never_shown(secret: str, value: str) -> None:
    """A secret that cannot be used delivers nothing, and its text is not in the message."""
    async with receiving() as receiver:
        delivery = await deliver(sink_to(receiver.url, secret=secret, value=value))
        assert (Result.RETRY, []) == (delivery.result, receiver.got)
        assert value == "" or value not in delivery.detail
