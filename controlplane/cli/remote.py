"""Questions to a running control plane, over its own API; the embedded store can be opened by that process alone."""

from __future__ import annotations

from typing import TypeVar

import httpx
import msgspec

from controlplane.errors import HephaestusError, NotFound, UpstreamFailed
from controlplane.secrets import ServerSecrets
from controlplane.settings import Settings

T = TypeVar("T")
TIMEOUT_S = 60.0


class NotRunning(HephaestusError):
    """No control plane answers at its address."""

    code = "not_running"
    status = 503


class Remote:
    """The operator API of the control plane that the configuration names."""

    def __init__(self, settings: Settings, secrets: ServerSecrets) -> None:
        self._url = settings.control_plane_url
        self._headers = {"authorization": f"Bearer {secrets.operator_token.reveal()}"}

    def get(self, path: str, shape: type[T], **parameters: str | int) -> T:
        """The answer of one GET, decoded. Raises NotRunning, NotFound or UpstreamFailed."""
        return _decoded(self._send("GET", path, parameters=parameters), shape)

    def ready(self) -> tuple[bool, str]:
        """Whether the control plane is ready, and what it says. Raises NotRunning."""
        try:
            answer = httpx.get(f"{self._url}/readyz", timeout=TIMEOUT_S, trust_env=False)
        except httpx.TransportError as error:
            raise self._not_running() from error
        return answer.is_success, f"{self._url} answered {answer.text[:300]}"

    def send(self, method: str, path: str, body: object, shape: type[T]) -> T:
        """The answer to a body, decoded."""
        return _decoded(self._send(method, path, body=msgspec.json.encode(body)), shape)

    def _send(
        self, method: str, path: str, *, parameters: dict[str, str | int] | None = None, body: bytes | None = None
    ) -> httpx.Response:
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        try:
            answer = httpx.request(
                method,
                f"{self._url}/api/v1{path}",
                params=parameters,
                content=body,
                headers=headers,
                timeout=TIMEOUT_S,
                trust_env=False,
            )
        except httpx.TransportError as error:
            raise self._not_running() from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(_detail(answer))
        if answer.is_error:
            raise UpstreamFailed(f"the control plane answered {answer.status_code}: {_detail(answer)}")
        return answer

    def _not_running(self) -> NotRunning:
        return NotRunning(
            f"no control plane answers at {self._url}; start one with `hephaestus up` or `hephaestus controlplane`"
        )


def _decoded(answer: httpx.Response, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.content, type=shape)
    except msgspec.DecodeError as error:
        raise UpstreamFailed(
            "the control plane's answer has another shape than this command knows; are both of the same version?"
        ) from error


def _detail(answer: httpx.Response) -> str:
    """The sentence of a problem document."""
    try:
        document = answer.json()
    except ValueError:
        return answer.text[:300]
    return (
        str(document.get("detail") or document.get("title") or document)
        if isinstance(document, dict)
        else str(document)
    )
