"""The kill switch: who may stop automation, where, and since when. Stream `control`; works from any process that has the journal.

Scopes: `global`, `playbook:<id>`, `target:<deployment>`. Mode `stop`: new runs are suppressed, running ones roll back. Mode `shadow`: plans
are made and recorded, nothing is applied (and what is applied already is rolled back).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from controlplane.errors import BadRequest
from controlplane.journal.events import Codec, NewEvent
from controlplane.journal.fold import Changes, execute, fold
from controlplane.journal.journal import Journal

STREAM = "control"


class Mode(StrEnum):
    """What an engaged switch does."""

    STOP = "stop"
    SHADOW = "shadow"


class Engaged(msgspec.Struct, frozen=True, tag="killswitch.engaged"):
    """Somebody pulled the switch."""

    scope: str
    mode: Mode
    by: str
    reason: str = ""


class Released(msgspec.Struct, frozen=True, tag="killswitch.released"):
    """Somebody put the switch back."""

    scope: str
    by: str


ControlEvent = Engaged | Released


class Control(msgspec.Struct, frozen=True):
    """All switches that are engaged."""

    engaged: tuple[Engaged, ...] = ()

    def why(self, mode: Mode, *, playbook_id: str, deployment: str) -> str:
        """Why a run of this playbook on this deployment is stopped (or shadowed); empty if it is not."""
        scopes = {"global", f"playbook:{playbook_id}", f"target:{deployment}"}
        for switch in self.engaged:
            if switch.scope in scopes and switch.mode is mode:
                reason = f": {switch.reason}" if switch.reason else ""
                return f"kill switch {switch.scope} engaged by {switch.by}{reason}"
        return ""


def evolve(state: Control, event: ControlEvent) -> Control:
    """The switches after one more event."""
    others = tuple(switch for switch in state.engaged if switch.scope != event.scope)
    return Control((*others, event) if isinstance(event, Engaged) else others)


class KillSwitch:
    """Reads and pulls the switches."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._codec: Codec[ControlEvent] = Codec(ControlEvent)

    def state(self) -> Control:
        """All switches now. Blocking."""
        return fold(Control(), (self._codec.decode(event) for event in self._journal.load(STREAM)), evolve)

    def engage(self, scope: str, *, by: str, reason: str = "", mode: Mode = Mode.STOP) -> None:
        """Pull a switch; pulling it again the same way changes nothing. Raises BadRequest for an unknown scope. Blocking."""
        self._execute(Engaged(scope=_checked(scope), mode=mode, by=by, reason=reason))

    def release(self, scope: str, *, by: str) -> None:
        """Put a switch back; harmless when it is not engaged. Blocking."""
        self._execute(Released(scope=_checked(scope), by=by))

    def _execute(self, event: ControlEvent) -> None:
        def decide(state: Control) -> Changes:
            held = {switch.scope: switch.mode for switch in state.engaged}
            wanted = event.mode if isinstance(event, Engaged) else None
            return Changes() if held.get(event.scope) == wanted else Changes([NewEvent(event, actor=event.by)])

        execute(self._journal, STREAM, decide, initial=Control(), evolve=evolve, codec=self._codec)


def _checked(scope: str) -> str:
    kind, _, name = scope.partition(":")
    if scope != "global" and not (kind in {"playbook", "target"} and name):
        raise BadRequest(f"{scope!r} is no scope of the kill switch; say global, playbook:<id> or target:<deployment>")
    return scope
