"""A process that `hephaestus up` or `hephaestus demo` has started ends with it, however that ends.

Its standard input is a pipe whose other end the parent holds: when the parent is gone, also by `kill -9`, the pipe reads its end, and
the process stops as by SIGTERM. Else it would serve on with nobody to tend it, and hold the ports and directories of the next start.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import MutableMapping

LIFELINE_ENV = "HEPH_LIFELINE"  # set by the parent; a process started by hand has none


def hold_lifeline(environ: MutableMapping[str, str], *, fd: int = 0) -> bool:
    """Watches over the parent, if it asked for that; whether it did.

    The variable is taken out, for what this process starts in turn has another standard input. fd: of the pipe.
    """
    if not environ.pop(LIFELINE_ENV, ""):
        return False
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the thread inherits it
    try:
        threading.Thread(target=_end_with, args=(fd,), name="lifeline", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def _end_with(fd: int) -> None:
    """In a thread that takes no signal: all are for the main one, which may block them, be busy, and wait for them later."""
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
