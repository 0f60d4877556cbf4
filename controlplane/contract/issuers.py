"""Issuers of tokens that stand in for virtual keys: whom the proxies believe, and what a token's claims mean."""

from __future__ import annotations

import msgspec

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a public key; a shared secret is none of the proxies' business."""


class Issuer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who signs JSON Web Tokens (RFC 7519) that the proxies accept as a virtual key.

    issuer, audience: what `iss` and `aud` must say. keys: the public keys as JSON Web Keys (RFC 7517), each a JSON text.
    tenant: who pays for every token; empty: the claim `tenant_claim` names the tenant, which must exist.
    models_claim: a claim with the aliases that a token may use, as a list or a text with spaces; empty: all of the tenant's.
    user_claim: the claim that says who calls.
    """

    name: str
    issuer: str
    audience: tuple[str, ...]
    keys: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    tenant: str = ""
    tenant_claim: str = ""
    models_claim: str = ""
    user_claim: str = "sub"
    leeway_s: float = 30.0  # between the clocks of issuer and proxy
