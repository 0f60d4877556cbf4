"""The one try of a call that is passed through: no other deployment, no second time, and what the upstream says, said again."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError, Outcome
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.transports.attempt import Attempt, AttemptFailed, AttemptTransport

# About the operator's account there: such an answer may quote the credential.
_OURS = frozenset((AttemptError.AUTH, AttemptError.QUOTA))
_TIMED_OUT = frozenset((AttemptError.DEADLINE, AttemptError.FIRST_BYTE_TIMEOUT, AttemptError.IDLE_TIMEOUT))

log = structlog.get_logger("proxy.passthrough")


class Passthrough:
    """Sends a call to its only candidate."""

    def __init__(self, inner: AttemptTransport, settings: ProxySettings, metrics: ProxyMetrics) -> None:
        """inner: belongs to somebody else, who closes it."""
        self._inner = inner
        self._settings = settings
        self._metrics = metrics

    async def send(self, call: Call) -> Reply:
        """The upstream's answer, errors included; our refusal where there is none or it is nobody's business."""
        attempt = Attempt(
            call, call.candidates[0], metrics=self._metrics, tokens_per_s=self._settings.abandoned_tokens_per_s
        )
        try:
            return await self._inner.send(attempt)
        except AttemptFailed as failure:
            attempt.fail(failure)
            return _refused(call, failure)
        except asyncio.CancelledError:
            attempt.finish(AttemptError.CANCELLED)
            raise
        except BaseException:
            attempt.finish(AttemptError.CANCELLED)
            raise

    async def aclose(self) -> None:
        """Nothing is held."""


def _refused(call: Call, failure: AttemptFailed) -> Reply:
    """What the client hears of a try that failed."""
    reply = failure.reply
    if reply is not None and failure.error not in _OURS and reply.status >= 400:
        reply.outcome = Outcome.UPSTREAM_REFUSED if reply.status < 500 else Outcome.EXHAUSTED
        reply.error_code = "upstream_refused" if reply.status < 500 else "exhausted"
        return reply
    if failure.error in _TIMED_OUT:
        return refuse(refusals.TIMED_OUT, str(failure))
    if failure.error in _OURS:
        log.warning("a path of an upstream could not be served", call_id=call.call_id, reason=failure.detail)
        message = f"this upstream does not take our credential; its operator finds the reason under {call.call_id}"
        return refuse(refusals.MISCONFIGURED, message)
    return refuse(refusals.EXHAUSTED, str(failure))
