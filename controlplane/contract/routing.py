"""How a route chooses, retries, hedges and falls back; part of the snapshot, and written as it is here in the configuration file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from controlplane.contract.records import AttemptError

Ratio = Annotated[float, Meta(ge=0, le=1)]
Aliases = Annotated[tuple[str, ...], Meta(max_length=10, title="a list of at most 10 models")]


class Strategy(StrEnum):
    """Which of the deployments of one order comes first; the others stand behind it."""

    WEIGHTED = "weighted"  # drawn by weight
    ORDERED = "ordered"  # as they are listed
    LEAST_BUSY = "least_busy"  # the fewest calls in flight for its weight
    LOWEST_LATENCY = "lowest_latency"  # the better of two drawn ones, by peak latency times calls in flight
    CHEAPEST = "cheapest"  # the lowest price; unpriced ones last


class Again(StrEnum):
    """Where a call may go after a failure."""

    ANY = "any"  # to the next deployment, and when there is none to the same again
    SAME = "same"  # to the same deployment again, and when its tries are used up to the next
    ANOTHER = "another"  # to the next deployment, never to this one again
    NONE = "none"  # nowhere: the call ends


class RetryRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is done about one class of failure."""

    on: Annotated[Again, Meta(description="Where the next try may go.")] = Again.ANY
    tries: Annotated[
        int,
        Meta(
            ge=1,
            le=20,
            description="Tries of one call that may fail this way; then it goes on with `same`, and ends with the others.",
        ),
    ] = 20


class Retries(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule for each class of failure; what is left out is as the level above has it, and at last `any` or `another`."""

    connect: Annotated[RetryRule | None, Meta(description="The upstream could not be reached.")] = None
    status_429: Annotated[RetryRule | None, Meta(description="It said that there were too many calls.")] = None
    status_5xx: Annotated[RetryRule | None, Meta(description="It failed.")] = None
    auth: Annotated[RetryRule | None, Meta(description="It refused our credential.")] = None
    quota: Annotated[RetryRule | None, Meta(description="Our credit there is used up.")] = None
    first_byte_timeout: Annotated[RetryRule | None, Meta(description="It was silent for too long.")] = None
    idle_timeout: Annotated[RetryRule | None, Meta(description="It fell silent within its answer.")] = None
    truncated: Annotated[RetryRule | None, Meta(description="Its answer ended too early.")] = None
    malformed: Annotated[RetryRule | None, Meta(description="Its answer made no sense.")] = None


class FallbackKind(StrEnum):
    """Why a call is served by another model than the one it asked for."""

    GENERAL = "general"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"
    BUDGET = "budget"


class Fallbacks(msgspec.Struct, frozen=True, omit_defaults=True):
    """Other models, in order, for calls that this one could not serve; their own fallbacks do not count."""

    general: Annotated[Aliases, Meta(description="When no deployment of this model answered.")] = ()
    context_window: Annotated[Aliases, Meta(description="When the upstream says that the request is too long.")] = ()
    content_policy: Annotated[Aliases, Meta(description="When the upstream's content policy refused.")] = ()
    budget: Annotated[Aliases, Meta(description="When the tenant's budget has not enough left.")] = ()

    def of(self, kind: FallbackKind) -> tuple[str, ...]:
        """The models for one reason."""
        aliases: tuple[str, ...] = getattr(self, kind.value)
        return aliases


NO_FALLBACKS = Fallbacks()


class Hedge(msgspec.Struct, frozen=True, omit_defaults=True):
    """A second try on another deployment when the first shows no content for long; the loser is cancelled.

    after_ms wins over after_percentile. extra_nanousd_max: what the second try may cost by expectation; second_nanousd: what one
    second less of waiting is worth; None: not asked.
    """

    after_ms: int | None = None
    after_percentile: float | None = None
    budget_ratio: float = 0.05
    extra_nanousd_max: int | None = None
    second_nanousd: int | None = None


class Principal(StrEnum):
    """By whom calls are told apart."""

    SESSION = "session"
    USER = "user"
    AGENT = "agent"
    KEY = "key"
    PROMPT = "prompt"  # the first bytes of the conversation: its system prompt


class Canary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A deployment that gets a sticky share of the calls: the same principal always lands on the same side."""

    deployment: Annotated[str, Meta(description="Its id; one of this model's deployments.")]
    share: Annotated[Ratio, Meta(description="Share of the principals that it serves, 0 to 1.")]
    by: Annotated[Principal, Meta(description="Who is always on the same side; calls that do not say are drawn.")] = (
        Principal.SESSION
    )


class Affinity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Calls of one conversation stay on one deployment while it is healthy, which keeps the provider's prompt cache warm."""

    by: Annotated[Principal, Meta(description="What stays together.")] = Principal.SESSION
    ttl_s: Annotated[float, Meta(gt=0, le=86_400, description="How long after its last call.")] = 300.0


class Shadow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A deployment that gets copies of answered calls; its replies are thrown away, its cost is recorded for nobody's budget."""

    deployment: Annotated[str, Meta(description="Id of any model's deployment.")]
    ratio: Annotated[Ratio, Meta(description="Share of the calls that are copied, 0 to 1.")]


class Concurrency(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many calls a deployment gets at once from one worker, and who waits for a place."""

    max: Annotated[int, Meta(ge=1, le=100_000, description="Most calls at once.")]
    min: Annotated[int, Meta(ge=1, le=100_000, description="Fewest that the adaptive limit goes down to.")] = 4
    adaptive: Annotated[bool, Meta(description="Whether latency and errors move the limit between the two.")] = True
    queue_max: Annotated[int, Meta(ge=0, le=100_000, description="Calls that may wait for a place.")] = 100
    queue_s: Annotated[float, Meta(gt=0, le=3_600, description="How long one waits at most.")] = 10.0


class Priority(StrEnum):
    """Who goes first where calls wait, and who is refused last."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class AllOpen(StrEnum):
    """What happens to a call when every breaker of its model is open."""

    REFUSE = "refuse"  # at once, with the time of the next probe
    TRY = "try"  # the first deployment is tried all the same


class BreakerWeights(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much one failure of each class counts in a breaker; 0: not at all."""

    connect: float = 1.0
    status_429: float = 0.5
    status_5xx: float = 1.0
    auth: float = 1.0
    quota: float = 1.0
    first_byte_timeout: float = 2.0
    idle_timeout: float = 1.0
    truncated: float = 1.0
    malformed: float = 1.0


RETRYABLE: tuple[AttemptError, ...] = tuple(AttemptError(name) for name in Retries.__struct_fields__)
"""The classes of failure for which there are rules and weights."""

_DEFAULT_RULES = {
    error: RetryRule(on=Again.ANOTHER if error in (AttemptError.AUTH, AttemptError.QUOTA) else Again.ANY)
    for error in RETRYABLE
}
ENDS = RetryRule(on=Again.NONE)


def rules_of(*levels: Retries) -> dict[AttemptError, RetryRule]:
    """The rule for each class of failure, from the first level that has one; classes without a rule end the call."""
    rules: dict[AttemptError, RetryRule] = {}
    for error in RETRYABLE:
        said = (getattr(level, error.value) for level in levels)
        rules[error] = next((rule for rule in said if rule is not None), _DEFAULT_RULES[error])
    return rules
