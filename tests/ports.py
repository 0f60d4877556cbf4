"""Ports for the processes that tests start."""

from __future__ import annotations

import secrets
import socket

_LOWEST, _COUNT = (
    10_000,
    12_000,
)  # below what kernels give to outgoing connections, also with the 10,000 that Redis adds for its bus
_TRIES = 100


def free_port() -> int:
    """A port that nobody has, and that no outgoing connection of others takes before the process listens for which it is."""
    for _ in range(_TRIES):
        port = _LOWEST + secrets.randbelow(_COUNT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port found")
