"""What is asked for: a view of the few fields that decide something; the bytes stay as they came."""

from __future__ import annotations

from typing import ClassVar

from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.dialect import Malformed
from proxy.dialects.multipart import check_boundary
from proxy.dialects.operations import OPERATIONS
from proxy.refusals import refuse
from proxy.stages.labels import merge_tags
from proxy.view import label, read_view

# Their bodies are multipart forms.
_FORMS = frozenset(name for name, row in OPERATIONS.items() if row.client_content_type)


class Decode:
    """Reads the view, and the body's own labels where no header gave any."""

    name: ClassVar[str] = "decode"

    def enter(self, call: Call) -> Reply | None:
        """Refuses a body that is not what the operation takes."""
        try:
            if call.operation in _FORMS:
                check_boundary(call.headers.get(b"content-type", b""), call.body)
            view = call.view = read_view(call.operation, call.body)
        except Malformed as error:
            return refuse(refusals.MALFORMED, str(error), param=error.param)
        if view.user and not call.user:
            call.user = label(view.user)
        if view.metadata:
            merge_tags(call, view.metadata)
        return None

    def leave(self, call: Call) -> None:
        """Nothing was taken."""
