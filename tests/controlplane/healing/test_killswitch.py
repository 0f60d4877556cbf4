"""The kill switch."""

from __future__ import annotations

import pytest

from controlplane.errors import BadRequest
from controlplane.healing.killswitch import KillSwitch, Mode
from controlplane.journal.journal import Journal


def test_a_switch_covers_its_scope_only(journal: Journal) -> None:
    """global covers all, playbook and target what they name; who and why are told."""
    switch = KillSwitch(journal)
    switch.engage("target:a/m", by="ann", reason="maintenance")
    control = switch.state()
    reason = control.why(Mode.STOP, playbook_id="p", deployment="a/m")
    assert "kill switch target:a/m engaged by ann: maintenance" == reason
    assert "" == control.why(Mode.STOP, playbook_id="p", deployment="b/m")
    assert "" == control.why(Mode.SHADOW, playbook_id="p", deployment="a/m")


def test_pulling_and_releasing_twice_changes_nothing(journal: Journal) -> None:
    """Only changes are events."""
    switch = KillSwitch(journal)
    for _ in range(2):
        switch.engage("global", by="ann")
    switch.engage("global", by="bob", mode=Mode.SHADOW)
    for _ in range(2):
        switch.release("global", by="ann")
    types = [event.type for event in journal.load("control")]
    assert ["killswitch.engaged", "killswitch.engaged", "killswitch.released"] == types
    assert () == switch.state().engaged


@pytest.mark.parametrize("scope", ["", "everything", "playbook:", "target:", "tenant:a", "Global"])
def test_an_unknown_scope_is_refused(journal: Journal, scope: str) -> None:
    """A switch that would cover nothing is an error, since somebody relies on it."""
    with pytest.raises(BadRequest, match="no scope of the kill switch"):
        KillSwitch(journal).engage(scope, by="ann")
