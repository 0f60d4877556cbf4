"""Tool calls whose pieces come in turns, one behind the other: a chat stream may mix them, the other protocols finish one before the next."""

from __future__ import annotations

import msgspec

from proxy.dialects.dialect import Malformed
from proxy.dialects.translate_chat_words import CallPart

_HELD_CHARS_MAX = 1024 * 1024  # of arguments that wait for the call before theirs
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Told:
    """One call: what was said of its arguments, and its pieces, as long as they wait."""

    __slots__ = ("identity", "said", "waiting")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.said: list[str] = []
        self.waiting: list[CallPart] = []


class CallOrder:
    """The calls of one stream. The first that is not whole is told as it comes; those behind it wait until it is, or until the end."""

    __slots__ = ("_held_chars", "_last", "_of", "_order")

    def __init__(self) -> None:
        self._of: dict[int, _Told] = {}  # by the upstream's index
        self._order: list[_Told] = []  # that are not ended
        self._last = -1  # index of the last piece
        self._held_chars = 0

    @property
    def holds(self) -> bool:
        """Whether anything waits."""
        return len(self._order) > 1

    def put(self, piece: CallPart) -> list[CallPart]:
        """What can be told now. Raises Malformed for a piece of a call that is ended, and where too much waits."""
        index = self._last = self._last if piece.index is None else piece.index
        call = self._of.get(index)
        if call is None or (piece.id and piece.id != call.identity):
            call = self._of[index] = _Told(piece.id or "")
            self._order.append(call)
        text = (piece.function.arguments if piece.function is not None else None) or ""
        if call not in self._order:
            if text:
                raise Malformed("the upstream sent a piece of a tool call that has ended")
            return []
        call.said.append(text)
        if call is self._order[0]:
            return [piece, *self._advance()] if self.holds else [piece]
        call.waiting.append(piece)
        self._held_chars += len(text)
        if self._held_chars > _HELD_CHARS_MAX:
            raise Malformed(f"the upstream sent {_HELD_CHARS_MAX} characters of tool calls before one was whole")
        return self._advance()

    def rest(self) -> list[CallPart]:
        """What still waits, when nothing more comes for the calls before it."""
        found = [piece for call in self._order[1:] for piece in call.waiting]
        del self._order[:-1]
        if self._order:
            self._order[0].waiting.clear()
        self._held_chars = 0
        return found

    def _advance(self) -> list[CallPart]:
        """Ends calls that are whole, and tells what waits behind them."""
        found: list[CallPart] = []
        while self.holds and _is_whole("".join(self._order[0].said)):
            del self._order[0]
            first = self._order[0]
            found += first.waiting
            self._held_chars -= sum(map(len, first.said))
            first.waiting.clear()
        return found


def _is_whole(arguments: str) -> bool:
    """Whether nothing can come behind these arguments."""
    try:
        _decode(arguments)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
