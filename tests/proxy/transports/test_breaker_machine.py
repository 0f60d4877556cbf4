"""The breaker as a machine: whatever happens in whatever order, what operators rely on holds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import BreakerPolicy
from proxy.transports.breaker import Breaker
from tests.proxy.fakes import Clock

POLICY = BreakerPolicy(window_s=10.0, requests_min=5, error_ratio=0.5, open_s=5.0, probes=2, failures_in_row=3.0)
FAILURES = st.sampled_from(
    [AttemptError.STATUS_5XX, AttemptError.CONNECT, AttemptError.STATUS_429, AttemptError.FIRST_BYTE_TIMEOUT]
)
NEUTRAL = st.sampled_from([AttemptError.CANCELLED, AttemptError.DEADLINE])


class BreakerMachine(RuleBasedStateMachine):
    """Calls, probes, hints and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.changes: list[str] = []
        self.breaker = Breaker("d", POLICY, lambda made: self.changes.append(made.state), self.clock, self.clock.us)
        self.probing = 0
        self.passed = 0
        self.opened_at = 0.0
        self.own_failures = 0

    @rule(seconds=st.floats(0.01, 12.0))
    def time_passes(self, seconds: float) -> None:
        """Nothing happens by time alone."""
        state = self.breaker.state
        self.clock.now += seconds
        assert state == self.breaker.state

    @rule(error=FAILURES)
    def a_call_fails(self, error: AttemptError) -> None:
        """An ordinary one, begun while it was closed."""
        before = self.breaker.state
        self.breaker.report(error, latency_s=0.1, probe=False)
        self.own_failures += 1
        if before != "closed":
            assert before == self.breaker.state
        elif self.breaker.state == "open":
            self.opened_at = self.clock.now

    @rule(error=st.sampled_from([AttemptError.NONE, AttemptError.REJECTED]))
    def a_call_succeeds(self, error: AttemptError) -> None:
        """It never changes a state."""
        before = self.breaker.state
        self.breaker.report(error, latency_s=0.1, probe=False)
        assert before == self.breaker.state

    @rule(error=NEUTRAL)
    def a_client_leaves(self, error: AttemptError) -> None:
        """That says nothing."""
        before = self.breaker.state
        self.breaker.report(error, latency_s=0.1, probe=False)
        assert before == self.breaker.state

    @rule(healthy=st.booleans())
    def another_worker_speaks(self, healthy: bool) -> None:
        """A hint alone decides nothing."""
        before = self.breaker.state
        self.breaker.hint(healthy=healthy, reason="theirs")
        assert before == self.breaker.state
        if healthy and before == "open":
            self.opened_at = self.clock.now - POLICY.open_s

    @precondition(lambda self: self.breaker.state != "closed")
    @rule()
    def a_call_comes(self) -> None:
        """It is let through only as a probe: after the time, and never more at once than the policy says."""
        before = self.breaker.state
        due = self.breaker.retry_after_s <= 0.0
        admitted = self.breaker.admit_probe()
        assert due == admitted
        if admitted:
            assert self.clock.now >= self.opened_at + POLICY.open_s - 1e-6
            if before == "open":
                self.probing = self.passed = 0
            self.probing += 1
            assert "half_open" == self.breaker.state

    @precondition(lambda self: self.probing > 0 and self.breaker.state == "half_open")
    @rule(error=st.one_of(FAILURES, NEUTRAL, st.just(AttemptError.NONE)))
    def a_probe_ends(self, error: AttemptError) -> None:
        """One failure opens it again; so many successes close it, and nothing else does."""
        self.probing -= 1
        self.breaker.report(error, latency_s=0.1, probe=True)
        if error is AttemptError.NONE:
            self.passed += 1
            assert ("closed" if self.passed >= POLICY.probes else "half_open") == self.breaker.state
        elif error in (AttemptError.CANCELLED, AttemptError.DEADLINE):
            assert "half_open" == self.breaker.state
        else:
            assert "open" == self.breaker.state
            self.opened_at = self.clock.now
        if self.breaker.state != "half_open":
            self.probing = 0

    @invariant()
    def it_says_why(self) -> None:
        """A breaker that is not closed has a reason and a cause, a closed one has none; and only own failures ever open it."""
        status = self.breaker.status()
        assert (status.state != "closed") == bool(status.reason)
        assert bool(self.breaker.reason) == bool(self.breaker.cause)
        assert self.own_failures or self.breaker.state == "closed"
        assert 0.0 <= status.error_ratio <= 1.0

    @invariant()
    def probes_are_few(self) -> None:
        """Never more at once than the policy says."""
        assert self.probing <= POLICY.probes

    @invariant()
    def it_is_never_stuck(self) -> None:
        """After its time an open one can always be probed."""
        if self.breaker.state == "open":
            assert self.breaker.retry_after_s <= POLICY.open_s


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
