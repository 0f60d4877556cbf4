"""Pushing to a Grafana: a small one on a real socket that keeps what it is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dashboards.push import PushFailed, push

TOKEN = "glsa_test"


class _Grafana(ThreadingHTTPServer):
    """The three calls that a push needs, for one token. refuse: answer boards with an error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders: list[dict[str, object]] = []
        self.boards: list[dict[str, object]] = []
        self.refuse = False


class _Handler(BaseHTTPRequestHandler):
    server: _Grafana

    def do_GET(self) -> None:
        """All folders."""
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"message": "Unauthorized"})
        else:
            self._answer(200, self.server.folders)

    def do_POST(self) -> None:
        """A new folder or a board."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/folders":
            self.server.folders.append(body)
            self._answer(200, body)
        elif self.server.refuse:
            self._answer(412, {"message": "provisioned dashboards cannot be saved"})
        else:
            self.server.boards.append(body)
            self._answer(200, {"url": f"/d/{body['dashboard']['uid']}/x", "status": "success"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def grafana() -> Iterator[_Grafana]:
    """A Grafana that is empty."""
    server = _Grafana()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _url(server: _Grafana) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_boards_are_put_into_their_folder_and_may_be_put_again(grafana: _Grafana) -> None:
    """The folder is made once; each push replaces the board."""
    assert [f"{_url(grafana)}/d/heph-overview/x"] == push(_url(grafana), TOKEN)
    push(_url(grafana), TOKEN)
    assert ["hephaestus"] == [folder["uid"] for folder in grafana.folders]
    assert [("hephaestus", True)] * 2 == [(board["folderUid"], board["overwrite"]) for board in grafana.boards]
    sent = grafana.boards[0]["dashboard"]
    assert isinstance(sent, dict)
    assert ("heph-overview", 29) == (sent["uid"], len(sent["panels"]))


def test_a_refused_board_is_said_by_name(grafana: _Grafana) -> None:
    """Grafana's own words come through."""
    grafana.refuse = True
    with pytest.raises(PushFailed, match=r"overview\.json was not taken.*provisioned"):
        push(_url(grafana), TOKEN)


def test_a_wrong_token_is_said_and_not_shown(grafana: _Grafana) -> None:
    """The message names the place and never the credential."""
    with pytest.raises(PushFailed, match=r"127\.0\.0\.1") as failure:
        push(_url(grafana), "wrong-token")
    assert "wrong-token" not in str(failure.value)


def test_a_grafana_that_is_not_there_is_said() -> None:
    """No stack of the client library, but a sentence."""
    with pytest.raises(PushFailed, match="cannot be made"):
        push("http://127.0.0.1:9", TOKEN, timeout_s=2.0)
