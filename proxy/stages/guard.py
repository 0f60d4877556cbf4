"""What is allowed: the models of the tenant and of the key, and the tenant's ceiling for one answer."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.other_models import may_name_others, others_named
from proxy.refusals import refuse


class Guard:
    """Holds a decoded request against the tenant's policy."""

    name: ClassVar[str] = "guard"

    def enter(self, call: Call) -> Reply | None:
        """Refuses models that are not allowed and a ceiling above the tenant's; sets the tenant's where there is none."""
        identity, view = call.identity, call.view
        assert identity is not None and view is not None, "identify and decode come first"  # noqa: S101, PT018
        models = identity.models
        if models is not None and view.model not in models:
            message = f"model `{view.model[:128]}` is not allowed for this key; GET /v1/models lists those that are"
            return refuse(refusals.FORBIDDEN, message, param="model")
        if models is not None and may_name_others(call.body):
            other = next((name for name in others_named(call.body) if name not in models), None)
            if other is not None:
                message = f"the request names model `{other[:128]}` besides, which is not allowed for this key"
                return refuse(refusals.FORBIDDEN, message, param="model")
            call.view = view = msgspec.structs.replace(view, ambiguous=True)  # what was read is what goes on
        ceiling = identity.tenant.max_output_tokens
        if ceiling is None:
            return None
        if view.max_output_tokens is None:
            call.output_ceiling = ceiling
        elif view.max_output_tokens > ceiling:
            message = (
                f"tenant {identity.tenant.id} may ask for at most {ceiling} output tokens, not {view.max_output_tokens}"
            )
            return refuse(refusals.FORBIDDEN, message, param="max_tokens")
        return None
