"""What an upstream keeps and is asked for by its id: responses, conversations and their items. Their bodies decide nothing but whose ids they name."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.responses import Responses
from proxy.dialects.responses_state import ids_named, names_ids, written_anew
from proxy.dialects.responses_stream import ResponsesScanner

_NONE = msgspec.Raw(b"[]")


class _Fields(msgspec.Struct):
    items: msgspec.Raw = _NONE


class _Status(msgspec.Struct):
    status: str | None = None


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_status = msgspec.json.Decoder(_Status).decode


class Kept(Responses):
    """An operation on one of them. It costs nothing there: what made it was billed."""

    name: ClassVar[str] = "kept"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a body, or of none. Raises Malformed, or what msgspec raises for a body that is not JSON."""
        continues: tuple[tuple[str, str], ...] = ()
        if names_ids(body):
            written_anew(body)  # what cannot be is said now, by its name
            items = _decode_fields(body).items
            continues = tuple(("items", name) for _, name in ids_named(conversation=b"null", items=items, tools=b"[]"))
        return RequestView(model="", include_usage=True, free=True, kept=True, continues=continues)

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The body as it came, or anew where it names ids."""
        return bytes(written_anew(body)) if view.continues or names_ids(body) else body

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """No usage, and the status if there is one: what is reported here was used, and billed, before. Raises Malformed."""
        if not body:
            return NO_TOKENS, ""
        try:
            status = _decode_status(body).status
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        return NO_TOKENS, status or ""

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> ResponsesScanner:  # noqa: ARG002 - the seam's
        """A reader for a stream that is taken up again."""
        return ResponsesScanner(event_bytes_max=event_bytes_max, committed=True, free=True)
