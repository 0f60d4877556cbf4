"""The name of a stored answer: a hash of who asks, how, and the whole request less what cannot change the answer.

The key is the whole canonical body minus a short deny-list, never an allow-list: a field that nobody here has heard of changes the key. The tenant
comes first and from the virtual key alone, so no two tenants can share an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

KEY_BYTES = 20

# Top-level fields that only say who asks or for which books. None of them reaches the model.
IGNORED_FIELDS = (
    "user",  # end-user id, for the provider's abuse monitoring
    "metadata",  # labels of a stored completion; often unique for each call
    "safety_identifier",  # the successor of `user`
    "prompt_cache_key",  # which machine may hold the prompt's prefix; changes speed, not text
)

_IGNORED = frozenset(IGNORED_FIELDS)

# Headers of the client that are forwarded and may change the answer, or whose books it is on there.
VARYING_HEADERS = (b"openai-beta", b"openai-organization", b"openai-project")
_VARYING = frozenset(VARYING_HEADERS)

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode
_PERSON = b"heph-cache-1"  # keys of another meaning of this module never match
_ITEM_PERSON = b"heph-item-1"


def variant_of(
    headers: Mapping[bytes, bytes], *, prefix: bytes = b"", query: bytes = b"", ceiling: int | None = None
) -> str:
    """What beside the body changes the key, each with its length; empty, as almost always, if there is none of it.

    prefix: of the names of all headers that are forwarded beside VARYING_HEADERS; b"": there are none. query: of the request's target, which
    may be forwarded. ceiling: the tenant's for an answer, where the body names none: an answer cut there is no answer under another.
    """
    found = ""
    if not _VARYING.isdisjoint(headers):
        for name in VARYING_HEADERS:
            if name in headers:
                found += _entry(name, headers[name])
    if prefix:
        found += "".join(_entry(name, headers[name]) for name in sorted(headers) if name.startswith(prefix))
    if query:
        found += _entry(b"?", query)
    if ceiling is not None:
        found += _entry(b"#", b"%d" % ceiling)
    return found


def _entry(name: bytes, value: bytes) -> str:
    return f"{len(name)}:{name.decode('latin-1')}{len(value)}:{value.decode('latin-1')}"


def cache_key(*, scope: bytes, body: bytes) -> bytes | None:
    """The key of a request, KEY_BYTES long; None if its body is not a JSON object that can be written again.

    scope: from `scope_of`.

    Canonical: names sorted at every level, no white space, strings unescaped, floats in their shortest form. An integer and a
    float of equal value differ (`1`, `1.0`), which costs at most a miss. Of equal names the last counts.
    """
    try:
        document = _decode(body)
        if type(document) is not dict:
            return None
        if not _IGNORED.isdisjoint(document):
            for field in IGNORED_FIELDS:
                document.pop(field, None)
        canonical = _encode(document)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return hashlib.blake2b(scope + canonical, digest_size=KEY_BYTES, person=_PERSON).digest()


def item_keys(*, tenant: str, alias: str, rest: bytes, items: Sequence[bytes], variant: str = "") -> list[bytes]:
    """The keys of the inputs of an embeddings request; each is as good as a key of a request for that input alone.

    rest: the request without its input and the ignored fields, canonical; items: the inputs, canonical.
    """
    scope = scope_of(tenant, "embeddings", alias, variant) + b"%d:" % len(rest) + rest
    base = hashlib.blake2b(scope, digest_size=KEY_BYTES, person=_ITEM_PERSON)
    keys = []
    for item in items:
        digest = base.copy()
        digest.update(item)
        keys.append(digest.digest())
    return keys


def scope_of(tenant: str, operation: str, alias: str, variant: str = "") -> bytes:
    """Who asks, and how: what a key begins with. variant: from `variant_of`."""
    scope = _plain_scope(tenant, operation, alias)
    return scope + variant.encode() if variant else scope


@lru_cache(maxsize=1024)
def _plain_scope(tenant: str, operation: str, alias: str) -> bytes:
    """Names from the catalog, so there are few."""
    return f"{len(tenant)}:{tenant}{len(operation)}:{operation}{len(alias)}:{alias}".encode()
