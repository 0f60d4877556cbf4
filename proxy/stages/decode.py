"""What is asked for: a view of the few fields that decide something; the bytes stay as they came."""

from __future__ import annotations

from typing import ClassVar

from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.multipart import check_boundary
from proxy.dialects.operations import OPERATIONS
from proxy.refusals import refuse
from proxy.repeats import Repeats
from proxy.stages.labels import merge_tags
from proxy.view import label, read_view

_SHOWN_CHARS_MAX = 64  # of a header that is repeated
_CACHED = frozenset(name for name, row in OPERATIONS.items() if row.cached)  # else a body is hashed for nothing
# Their bodies are multipart forms.
_FORMS = frozenset(name for name, row in OPERATIONS.items() if row.client_content_type)


class Decode:
    """Reads the view, and the body's own labels where no header gave any."""

    name: ClassVar[str] = "decode"

    def __init__(self, repeats: Repeats) -> None:
        """repeats: bodies that need not be read again."""
        self._repeats = repeats

    def enter(self, call: Call) -> Reply | None:
        """Refuses a body that is not what the operation takes."""
        identity = call.identity
        assert identity is not None, "identify comes first"  # noqa: S101
        if call.operation in _CACHED:
            known = call.known = self._repeats.get(identity.tenant.id, call.operation, call.body)
            if known is not None:
                self._take(call, known.view)
                return None
        try:
            if call.operation in _FORMS:
                check_boundary(call.headers.get(b"content-type", b""), call.body)
            self._take(call, read_view(call.operation, call.body))
        except Malformed as error:
            return refuse(refusals.MALFORMED, str(error) + _why(call), param=error.param)
        return None

    @staticmethod
    def _take(call: Call, view: RequestView) -> None:
        call.view = view
        if view.user and not call.user:
            call.user = label(view.user)
        if view.metadata:
            merge_tags(call, view.metadata)


def _why(call: Call) -> str:
    """What the headers tell about a body that cannot be read, and what to do."""
    if not call.body:
        return "; it is empty"
    encoding = label(call.headers.get(b"content-encoding", b"").decode("latin-1"), _SHOWN_CHARS_MAX)
    if encoding not in ("", "identity"):
        return f"; it came with `content-encoding: {encoding}`: send it as it is, compressed bodies are not read"
    kind = label(call.headers.get(b"content-type", b"").decode("latin-1"), _SHOWN_CHARS_MAX)
    if kind and "json" not in kind and call.operation not in _FORMS:
        return f"; it came as `{kind}`: send JSON as `application/json`"
    return ""
