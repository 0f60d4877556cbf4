"""`hephaestus doctor`: what it finds, and what it says to do."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane.cli.conftest import Shell


class Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy that is ready, and says so."""

    said = b"{}"

    def do_GET(self) -> None:
        """The answer of `/readyz`."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def port() -> Iterator[int]:
    """Where it listens."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("said", "ok"), [({"status": "ready"}, True), ({"degraded": "Redis does not answer"}, False)])
def test_a_proxy_that_goes_on_without_redis_is_told(
    shell: Shell, port: int, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], *, ok: bool
) -> None:
    """A wrong address or password of Redis fails no call, so this is where an operator sees it, with what to do; any address is dialled."""
    monkeypatch.setattr(Proxy, "said", json.dumps(said).encode())
    file = Path(shell.config)
    file.write_text(file.read_text().replace("  port: 9\n", f'  port: 9\n  proxy_host: "::"\n  proxy_port: {port}\n'))
    report = json.loads(shell.run("doctor", "--json").stdout)
    (proxy,) = [one for one in report["checked"] if one["what"] == "proxy"]
    assert ok == proxy["ok"]
    assert ok or ("Redis does not answer" in proxy["detail"] and "server.redis" in proxy["todo"])
