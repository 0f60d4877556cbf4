"""The generic webhook: a CloudEvents body under Standard Webhooks headers, to an address that was checked."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from controlplane.alerts.alert import AlertSink, Notification
from controlplane.alerts.render import CONTENT_TYPE, cloud_event
from controlplane.alerts.sinks.address import Target, networks, resolve
from controlplane.alerts.sinks.base import Delivery, Result
from controlplane.errors import BadRequest, HephaestusError, SecretUnavailable
from controlplane.secrets import resolve as resolve_secret

ANSWER_BYTES_MAX = 16 * 1024
RETRY_AFTER_S_MAX = 86_400.0


class WebhookSink:
    """Posts notifications to one URL. Redirects are failures, answers are read up to a limit, proxies of the environment are not used."""

    kind = "webhook"

    def __init__(
        self,
        config: AlertSink,
        *,
        timeout_s: float,
        now_us: Callable[[], int],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """timeout_s: of one try as a whole. Raises BadRequest when `allow_private` cannot be read."""
        self._config = config
        self._timeout_s = timeout_s
        self._now_us = now_us
        self._environ = environ
        self._allow = networks(config.allow_private)
        self._client = httpx.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=timeout_s, limits=httpx.Limits(max_connections=4)
        )

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self._config.name

    @property
    def address(self) -> str:
        """The URL."""
        return self._config.url

    @property
    def per_minute(self) -> int:
        """How many deliveries a minute it takes."""
        return self._config.per_minute

    async def deliver(self, message_id: str, notification: Notification) -> Delivery:
        """Try once; never raises for what the network or the receiver does."""
        body = cloud_event(notification, message_id)
        try:
            headers = await asyncio.to_thread(self._headers, message_id, body)
            async with asyncio.timeout(self._timeout_s):
                target = await resolve(self._config.url, self._allow)
                return await self._post(target, headers, body)
        except BadRequest as error:
            return Delivery(Result.REFUSED, error.message)
        except HephaestusError as error:
            return Delivery(Result.RETRY, error.message)
        except TimeoutError:
            return Delivery(Result.RETRY, f"no answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            return Delivery(Result.RETRY, f"{type(error).__name__}: {error}")

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def _post(self, target: Target, headers: dict[str, str], body: bytes) -> Delivery:
        request = self._client.build_request(
            "POST",
            target.pinned_url,
            content=body,
            headers={**headers, "host": target.host_header},
            extensions={"sni_hostname": target.host},  # the certificate must be the name's, not the address's
        )
        response = await self._client.send(request, stream=True)
        try:
            seen = 0
            async for chunk in response.aiter_raw():
                seen += len(chunk)
                if seen > ANSWER_BYTES_MAX:
                    break
        finally:
            await response.aclose()
        return _delivery(response)

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        """The Standard Webhooks headers; several secrets in one reference, separated by space, each sign (for rotation)."""
        moment = datetime.fromtimestamp(self._now_us() // 1_000_000, tz=UTC)
        headers = {
            "content-type": CONTENT_TYPE,
            "user-agent": "hephaestus",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(moment.timestamp())),
        }
        if self._config.secret is not None:
            secrets = resolve_secret(self._config.secret, self._environ).reveal().split()
            try:
                signatures = [Webhook(secret).sign(message_id, moment, body.decode()) for secret in secrets]
            except (binascii.Error, ValueError, EmptyWebhookSecretError):
                raise SecretUnavailable(
                    f"the secret {self._config.secret} is no webhook secret; it looks like whsec_<base64>"
                ) from None
            headers["webhook-signature"] = " ".join(signatures)
        return headers


def _delivery(response: httpx.Response) -> Delivery:
    status = response.status_code
    detail = f"status {status}"
    if 200 <= status < 300:
        return Delivery(Result.OK, detail)
    if status == httpx.codes.GONE:
        return Delivery(Result.GONE, detail)
    return Delivery(Result.RETRY, detail, _retry_after_s(response.headers.get("retry-after", "")))


def _retry_after_s(header: str) -> float | None:
    """The header in seconds, if it is a number; a date is left to the schedule."""
    return min(float(header), RETRY_AFTER_S_MAX) if header.strip().isdecimal() else None
