"""Somebody who is told: a local HTTP server that checks and keeps the webhooks it gets."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from standardwebhooks import Webhook

SECRET = "whsec_c2VjcmV0LW9mLXRoZS1lbmQtdG8tZW5kLXRlc3Rz"


@dataclass
class Receiver:
    """Verifies each delivery and answers 503 to the first try of each message, as a receiver in trouble would."""

    tries: list[str] = field(default_factory=list)  # webhook-id of each verified try
    taken: dict[str, dict[str, Any]] = field(default_factory=dict)  # CloudEvents by webhook-id: JSON of any shape
    forged: int = 0

    def __enter__(self) -> Receiver:
        """Listens on a free port."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(receiver.take(dict(self.headers.items()), body))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """The status of the answer to one delivery."""
        lowered = {name.lower(): value for name, value in headers.items()}
        try:
            Webhook(SECRET).verify(body.decode(), lowered)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not from us
            self.forged += 1
            return 401
        message = lowered["webhook-id"]
        again = message in self.tries
        self.tries.append(message)
        if not again:
            return 503
        self.taken[message] = json.loads(body)
        return 204

    def types(self) -> list[str]:
        """What was told, in the order of arrival."""
        return [str(event["type"]) for event in self.taken.values()]
