"""What a simulated upstream served and billed: the truth that a gateway's ledger is compared with."""

from __future__ import annotations

import msgspec


class ModelStats(msgspec.Struct):
    """Counts of one model. Tokens are those billed: of whole answers, and of what cancelled ones had produced."""

    calls: int = 0  # requests that were valid and not broken by a fault that answers an error
    completed: int = 0  # the whole answer was handed to the connection
    cancelled: int = 0  # the client left before that
    broken: int = 0  # a fault cut the answer off
    streams: int = 0  # of the calls
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens
    cache_write_tokens: int = 0  # of the prompt tokens
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion tokens
    reported_prompt_tokens: int = 0  # what the usage said; differs from the truth under a wrong_usage fault
    reported_completion_tokens: int = 0


class UpstreamStats(msgspec.Struct):
    """Counts of one upstream since its start or the last reset."""

    requests: int = 0  # everything that was parsed, refused ones too
    in_flight: int = 0
    connections: int = 0  # open now
    turned_away: int = 0  # connections beyond connections_max
    unreadable: int = 0  # requests beyond body_bytes_max, or not HTTP
    held_back: int = 0  # times that pipelined_max was reached
    refused_by_status: dict[int, int] = msgspec.field(default_factory=dict)  # errors answered, faults included
    by_fault: dict[str, int] = msgspec.field(default_factory=dict)  # calls that met a fault, by kind
    by_model: dict[str, ModelStats] = msgspec.field(default_factory=dict)  # by the name that answers carry
    answers_kept: int = 0  # repeated prompts that are answered from memory
    answers_evicted: int = 0  # because answers_bytes_max was reached

    def model(self, name: str) -> ModelStats:
        """The counts of one model, made at its first call."""
        found = self.by_model.get(name)
        if found is None:
            found = self.by_model[name] = ModelStats()
        return found

    def refuse(self, status: int) -> None:
        """Counts an error answer."""
        self.refused_by_status[status] = self.refused_by_status.get(status, 0) + 1
