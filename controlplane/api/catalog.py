"""The catalog over HTTP: tenants, models, proxies, and virtual keys, which alone can be changed here."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter

from controlplane.api.parts import PartsOf
from controlplane.api.views import KeyView, NewKey
from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import ProxyStatus, Route, TenantPolicy

_TAGS = ["catalog"]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish for a virtual key. models: the aliases it may use; without them all that its tenant may."""

    tenant: _Name
    models: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=1000)] | None = None
    expires_in_s: Annotated[int, msgspec.Meta(gt=0, le=10 * 366 * 86400)] | None = None


@get("/api/v1/tenants", tags=_TAGS, summary="Tenants with their limits and budgets")
async def tenants(parts: PartsOf) -> tuple[TenantPolicy, ...]:
    """Tenants as the current snapshot has them."""
    return parts.publisher.current.tenants


@get("/api/v1/models", tags=_TAGS, summary="Model aliases with their deployments")
async def models(parts: PartsOf) -> tuple[Route, ...]:
    """Routes as the current snapshot has them."""
    return parts.publisher.current.routes


@get("/api/v1/proxies", tags=_TAGS, summary="Proxies by their last status")
async def proxies(parts: PartsOf) -> list[ProxyStatus]:
    """What each proxy worker said about itself last."""
    return list(parts.publisher.statuses())


@get("/api/v1/keys", tags=_TAGS, summary="Virtual keys, without their secrets")
async def keys(parts: PartsOf) -> list[KeyView]:
    """All keys, revoked ones too."""
    return list(await parts.keys.list())


@post("/api/v1/keys", tags=_TAGS, summary="Make a virtual key")
async def create_key(data: JSONBody[KeyRequest], parts: PartsOf, request: Request[object, object, State]) -> NewKey:
    """A fresh key; this answer is the only place where its secret is ever shown."""
    expires_us = None
    if data.expires_in_s is not None:
        expires_us = parts.clock.now_us() + data.expires_in_s * US_PER_S
    return await parts.keys.create(
        tenant=data.tenant, models=data.models, expires_us=expires_us, actor=request.state.actor
    )


@delete("/api/v1/keys/{key_id:str}", tags=_TAGS, summary="Revoke a virtual key")
async def revoke_key(
    key_id: Annotated[str, PathParameter(max_length=128)], parts: PartsOf, request: Request[object, object, State]
) -> None:
    """Makes a key worthless as soon as the proxies have the next snapshot."""
    await parts.keys.revoke(key_id, actor=request.state.actor)


ROUTES = (tenants, models, proxies, keys, create_key, revoke_key)
