"""The catalog over HTTP: tenants, models, proxies, and virtual keys, which alone can be changed here."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter, QueryParameter

from controlplane.api.parts import PartsOf
from controlplane.api.views import KeyView, NewKey, ProxyView
from controlplane.catalog.state import KeyRecord
from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import Route, TenantPolicy

_TAGS = ["catalog"]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish for a virtual key. models: the aliases it may use; without them all that its tenant may."""

    tenant: _Name
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    models: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=1000)] | None = None
    expires_in_s: Annotated[int, msgspec.Meta(gt=0, le=10 * 366 * 86400)] | None = None
    addresses: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1, max_length=100)] | None = None


class RotationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish for a new secret. grace_s: how long the one before stays good."""

    grace_s: Annotated[int, msgspec.Meta(ge=0, le=30 * 86400)] = 86400


class TenantList(msgspec.Struct, frozen=True):
    """Tenants as the current snapshot has them."""

    tenants: tuple[TenantPolicy, ...]


class ModelList(msgspec.Struct, frozen=True):
    """Model aliases with their deployments as the current snapshot has them."""

    models: tuple[Route, ...]


class ProxyList(msgspec.Struct, frozen=True):
    """Live proxy workers, and the snapshot they should have."""

    snapshot_version: int
    proxies: tuple[ProxyView, ...]


class KeyList(msgspec.Struct, frozen=True):
    """Virtual keys, oldest first."""

    keys: tuple[KeyView, ...]


@get("/api/v1/tenants", tags=_TAGS, summary="Tenants with their limits and budgets")
async def tenants(parts: PartsOf) -> TenantList:
    """What is not there has its default."""
    return TenantList(parts.publisher.current.tenants)


@get("/api/v1/models", tags=_TAGS, summary="Model aliases with their deployments")
async def models(parts: PartsOf) -> ModelList:
    """What is not there has its default."""
    return ModelList(parts.publisher.current.routes)


@get("/api/v1/proxies", tags=_TAGS, summary="Proxies by their last status")
async def proxies(parts: PartsOf) -> ProxyList:
    """What each live proxy worker said about itself last."""
    found = tuple(ProxyView.of(status) for status in parts.publisher.statuses())
    return ProxyList(parts.publisher.current.version, found)


@get("/api/v1/keys", tags=_TAGS, summary="Virtual keys, without their secrets")
async def keys(parts: PartsOf, tenant: Annotated[str | None, QueryParameter(max_length=128)] = None) -> KeyList:
    """All keys, revoked ones too."""
    return KeyList(tuple(_view(record) for record in await asyncio.to_thread(parts.keys.list, tenant=tenant)))


@post("/api/v1/keys", tags=_TAGS, summary="Make a virtual key")
async def create_key(data: JSONBody[KeyRequest], parts: PartsOf, request: Request[object, object, State]) -> NewKey:
    """A fresh key; this answer is the only place where its secret is ever shown."""
    expires_us = None
    if data.expires_in_s is not None:
        expires_us = parts.clock.now_us() + data.expires_in_s * US_PER_S
    issued = await asyncio.to_thread(
        parts.keys.create,
        data.tenant,
        name=data.name,
        models=data.models,
        expires_us=expires_us,
        addresses=data.addresses,
        actor=request.state.actor,
    )
    return NewKey(id=issued.record.id, tenant=issued.record.tenant, key=issued.secret.reveal())


@post("/api/v1/keys/{key_id:str}/rotate", tags=_TAGS, summary="Give a virtual key a new secret")
async def rotate_key(
    key_id: Annotated[str, PathParameter(max_length=128)],
    data: JSONBody[RotationRequest],
    parts: PartsOf,
    request: Request[object, object, State],
) -> NewKey:
    """The new secret, shown in this answer alone; the one before stays good for the grace that was asked for."""
    issued = await asyncio.to_thread(
        parts.keys.rotate, key_id, grace_us=data.grace_s * US_PER_S, actor=request.state.actor
    )
    record = issued.record
    return NewKey(id=record.id, tenant=record.tenant, key=issued.secret.reveal(), grace_until_us=record.grace_until_us)


@delete("/api/v1/keys/{key_id:str}", status_code=200, tags=_TAGS, summary="Revoke a virtual key")
async def revoke_key(
    key_id: Annotated[str, PathParameter(max_length=128)], parts: PartsOf, request: Request[object, object, State]
) -> KeyView:
    """Makes a key worthless as soon as the proxies have the next snapshot; doing it twice changes nothing."""
    return _view(await asyncio.to_thread(parts.keys.revoke, key_id, actor=request.state.actor))


def _view(record: KeyRecord) -> KeyView:
    """A key as operators see it: without even its hash."""
    return KeyView(
        id=record.id,
        tenant=record.tenant,
        name=record.name,
        models=record.models,
        created_us=record.created_us,
        expires_us=record.expires_us,
        revoked_us=record.revoked_us,
        addresses=record.addresses,
        rotated_us=record.rotated_us,
        grace_until_us=record.grace_until_us,
    )


ROUTES = (tenants, models, proxies, keys, create_key, rotate_key, revoke_key)
