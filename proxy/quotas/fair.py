"""Sharing between the agents of a tenant: who takes more than its part may borrow what the others leave, and no more.

Of a capacity (slots, or requests a minute) each *active* agent is entitled to its weight's part. An agent below its part takes what is there.
One above it may take more only while enough stays free for all that the other active agents are entitled to and do not use:

    free - 1 >= sum over the others of max(0, part - use)

So nothing lies idle while somebody wants it and nobody else is entitled to it, and an agent that wants little finds it free whatever
the others want. An agent is active for some seconds after each call it made or tried; one that comes anew waits at most until others'
calls end or the bucket has refilled by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_ACTIVE_S = 10.0  # after its last call, refused ones included
_RECENT_S = 60.0  # over which requests are counted, fading
_OTHERS = "(others)"  # agents beyond the bound share one entry


class Agent:
    """What one agent uses: calls in flight, and requests of the last minute, fading."""

    __slots__ = ("_recent", "_recent_s", "inflight", "seen_s", "weight")

    def __init__(self, weight: int, now_s: float) -> None:
        self.weight = weight
        self.seen_s = now_s
        self.inflight = 0
        self._recent = 0.0
        self._recent_s = now_s

    def recent(self, now_s: float) -> float:
        """Requests that count as of the last minute."""
        return self._recent * math.exp((self._recent_s - now_s) / _RECENT_S)

    def took(self, now_s: float) -> None:
        """One request more, and one call in flight."""
        self._recent = self.recent(now_s) + 1.0
        self._recent_s = now_s
        self.inflight += 1

    def left(self) -> None:
        """One call less in flight: one of those that it took, whoever goes by its name now."""
        self.inflight -= 1


class FairShares:
    """The agents of one tenant that were there lately, bounded in number."""

    def __init__(self, weights: Mapping[str, int], *, agents_max: int) -> None:
        self.weights = weights
        self._agents_max = agents_max
        self._agents: dict[str, Agent] = {}

    def arrived(self, name: str, now_s: float) -> Agent:
        """The agent of a call that has come, active from now on."""
        agent = self._agents.get(name)
        if agent is None:
            agent = self._agents.get(_OTHERS) if not self._has_room(now_s) else None
            if agent is None:
                name = name if len(self._agents) < self._agents_max else _OTHERS
                agent = self._agents[name] = Agent(self.weights.get(name, 1), now_s)
        agent.seen_s = now_s
        return agent

    def may_have_slot(self, agent: Agent, *, capacity: float, free: float, now_s: float) -> bool:
        """Whether one more call in flight is this agent's to have."""
        active = self._active(now_s)
        part = capacity / sum(one.weight for one in active)
        if agent.inflight < part * agent.weight:
            return True
        due = sum(max(0.0, part * one.weight - one.inflight) for one in active if one is not agent)
        return free - 1 >= due

    def may_request(self, agent: Agent, *, per_minute: float, level: float, now_s: float) -> bool:
        """Whether one more request is this agent's to make. level: requests that the tenant's bucket holds."""
        active = self._active(now_s)
        part = per_minute / sum(one.weight for one in active)
        if agent.recent(now_s) < part * agent.weight:
            return True
        due = sum(max(0.0, part * one.weight - one.recent(now_s)) for one in active if one is not agent)
        return level - 1 >= due

    def _active(self, now_s: float) -> list[Agent]:
        since_s = now_s - _ACTIVE_S
        return [agent for agent in self._agents.values() if agent.inflight or agent.seen_s >= since_s]

    def _has_room(self, now_s: float) -> bool:
        """Whether one more agent fits, the idle ones forgotten if need be."""
        if len(self._agents) < self._agents_max:
            return True
        since_s = now_s - _RECENT_S
        for name in [name for name, one in self._agents.items() if not one.inflight and one.seen_s < since_s]:
            del self._agents[name]
        return len(self._agents) < self._agents_max
