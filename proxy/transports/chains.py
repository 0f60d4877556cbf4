"""How much a request builds on: the tokens of what it names at its upstream, written down with its owner, and reserved with it.

An upstream puts the whole conversation before the input of a response that continues one, and bills it as input. So with each response the tokens
of its input and output are kept, which are what the next one begins with; with a conversation the tokens of its last response and the bytes of
what clients have put into it since; with an item at most the output of the response that made it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from controlplane.contract.pricing import Tokens
from proxy.call import Call
from proxy.dialects.responses_state import Made
from proxy.transports.owners import Owner, Owners, OwnersUnavailable

CONTEXT_TOKENS_MAX = 2**31  # no model reads as much; what is more is not believed


class Chains:
    """Looks up what calls build on, for whoever reserves it."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self.unknown_total = 0  # things that a request builds on and whose size nobody has written down

    def ahead(self, call: Call) -> Callable[[], Awaitable[None]]:
        """What must be waited for before the call's worst case is known."""

        async def find() -> None:
            call.context_tokens = await self._context_of(call)

        return find

    async def _context_of(self, call: Call) -> int:
        view, identity = call.view, call.identity
        if view is None or identity is None:
            return 0
        try:
            found = await self._owners.find(identity.tenant.id, [name for _, name in view.continues])
        except OwnersUnavailable:
            return 0  # nor will it be sent anywhere: that needs the same look-up
        self.unknown_total += sum(not owner.tokens for owner in found.values())
        return context_in(found.values())


def context_in(owners: Iterable[Owner]) -> int:
    """Tokens that the upstream puts before the input of a request which names these."""
    return min(CONTEXT_TOKENS_MAX, sum(owner.tokens for owner in owners))


def sizes_of(call: Call, made: Made, owner: Owner, usage: Tokens | None, *, output_max: int) -> dict[str, int]:
    """The tokens of everything that an answer speaks of, by id; what is left out stays as it was written down.

    owner: of what the call is about, or new. usage: of a response that has ended. output_max: of one that has not.
    """
    given = len(call.body)
    if call.operation == "responses":
        whole, part = getattr(call, "context_tokens", 0) + given + output_max, output_max
        if usage is not None:
            whole, part = usage.total, usage.total_output
        sizes = dict.fromkeys(made.ids, part)
        sizes |= {name: whole for name in (made.id, made.conversation) if name in sizes}
    elif call.operation == "conversations_create":
        sizes = dict.fromkeys(made.ids, given)
    elif call.operation == "conversations_items_create":
        sizes = dict.fromkeys(made.ids, given)
        sizes[call.path.removeprefix("/v1").split("/")[2]] = owner.tokens + given
    elif usage is not None:
        sizes = dict.fromkeys(made.ids, usage.total_output) | {made.id: usage.total}
        sizes.pop(made.conversation, None)  # it may have gone on since
    else:
        sizes = {name: owner.tokens for name in made.ids if name == made.id or name != made.conversation}
    return {name: min(size, CONTEXT_TOKENS_MAX) for name, size in sizes.items()}


def watch_chains(watch: Callable[[str, str, Callable[[], float]], None], chains: Chains) -> None:
    """Shows what was not reserved because nobody knew it."""
    watch(
        "owners_unsized_total",
        "Things that a request under limits builds on and whose size is not known, so that it was not reserved.",
        lambda: chains.unknown_total,
    )
