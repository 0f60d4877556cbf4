"""Tokens that stand in for a virtual key: JSON Web Tokens of the issuers that the snapshot names, checked without asking anybody.

A token is believed if its signature fits a public key of the issuer whose `iss` it names, under an algorithm which that issuer is allowed, and
`exp`, `nbf`, `iat` and `aud` hold. A token that was believed once is looked up by its hash until it expires or the snapshot changes.

Importing this costs what a library of cryptography costs, so `identify` does so only where the snapshot names an issuer.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any  # claims are JSON of somebody else's making

import jwt
import msgspec
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from controlplane.contract.issuers import Issuer
from controlplane.contract.snapshot import KeyEntry
from proxy.runtime import KeyIdentity, Runtime, identity_of
from proxy.view import label

TOKEN_BYTES_MAX = 8 * 1024
MODELS_MAX = 1_000
_SEGMENTS = 3
_KNOWN = "this token is not accepted"


class NotAccepted(Exception):
    """A token that counts for nothing; the text may be shown to its bearer."""


class _Checked(msgspec.Struct, frozen=True):
    identity: KeyIdentity
    expires_us: int


class Tokens:
    """Believes tokens, and remembers those it has believed."""

    def __init__(self, *, now_us: Callable[[], int], remembered_max: int) -> None:
        """now_us: the wall clock. remembered_max: tokens whose signature need not be checked again."""
        self._now_us = now_us
        self._remembered_max = remembered_max
        self._runtime: Runtime | None = None
        self._believed: OrderedDict[bytes, _Checked] = OrderedDict()
        self._keys: dict[str, tuple[_VerifyingKey, ...]] = {}
        self.forgotten_total = 0

    def identify(self, runtime: Runtime, token: bytes) -> KeyIdentity:
        """Who bears a token. Raises NotAccepted with what to do."""
        if runtime is not self._runtime:
            self._runtime = runtime
            self._believed.clear()
            self._keys.clear()
        digest = hashlib.blake2b(token, digest_size=20).digest()
        checked = self._believed.get(digest)
        if checked is None:
            checked = self._believed[digest] = self._check(runtime, token)
            if len(self._believed) > self._remembered_max:
                self._believed.popitem(last=False)
                self.forgotten_total += 1
        if self._now_us() >= checked.expires_us:
            del self._believed[digest]
            raise NotAccepted("this token has expired; get a fresh one")
        return checked.identity

    def _check(self, runtime: Runtime, token: bytes) -> _Checked:
        try:
            text = token.decode("ascii")
            header = jwt.get_unverified_header(text)
            claimed = _unverified(text)
        except (ValueError, msgspec.DecodeError, jwt.PyJWTError, RecursionError) as error:
            raise NotAccepted("this is neither an API key of ours nor a token that can be read") from error
        issuer = next((each for each in runtime.snapshot.issuers if each.issuer == claimed.iss), None)
        if issuer is None:
            raise NotAccepted(f"{_KNOWN}: its issuer is not known here")
        claims = self._verified(issuer, text, header)
        return self._believe(runtime, issuer, claims)

    def _verified(self, issuer: Issuer, text: str, header: Mapping[str, object]) -> dict[str, Any]:
        """The claims of a token whose signature and times hold."""
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in issuer.algorithms:
            raise NotAccepted(f"{_KNOWN}: it is not signed in a way that is allowed")
        keys = self._keys.get(issuer.name)
        if keys is None:
            keys = self._keys[issuer.name] = _verifying_keys(issuer)
        fitting = [key for key in keys if key.fits(str(algorithm)) and (kid is None or key.kid in (None, kid))]
        for key in fitting:
            try:
                claims: dict[str, Any] = jwt.decode(
                    text,
                    key.key,
                    algorithms=[str(algorithm)],
                    audience=list(issuer.audience),
                    issuer=issuer.issuer,
                    leeway=issuer.leeway_s,
                    options={"require": ["exp", "iss", "aud"]},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError as error:
                raise NotAccepted("this token has expired; get a fresh one") from error
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
                raise NotAccepted(f"{_KNOWN}: {label(str(error), 100)}") from error
            return claims
        raise NotAccepted(f"{_KNOWN}: it is signed with a key that is not its issuer's")

    def _believe(self, runtime: Runtime, issuer: Issuer, claims: Mapping[str, Any]) -> _Checked:
        """Whom the claims name. Any: JSON of somebody else's making."""
        name = issuer.tenant or claims.get(issuer.tenant_claim)
        tenant = next((each for each in runtime.snapshot.tenants if each.id == name), None)
        if tenant is None:
            raise NotAccepted(f"{_KNOWN}: no tenant pays for it")
        user = claims.get(issuer.user_claim)
        bearer = label(user) if isinstance(user, str) else ""
        key = KeyEntry(
            hash="",
            id=f"{issuer.name}:{bearer}",
            tenant=tenant.id,
            models=_models(claims.get(issuer.models_claim)) if issuer.models_claim else None,
        )
        expires_us = int(claims["exp"]) * 1_000_000 + int(issuer.leeway_s * 1_000_000)  # as the library has read it
        return _Checked(identity=identity_of(tenant, key), expires_us=expires_us)


class _Claimed(msgspec.Struct):
    iss: str = ""


class _VerifyingKey(msgspec.Struct, frozen=True):
    kid: str | None
    kind: str
    key: Any  # of the library; its type depends on the kind

    def fits(self, algorithm: str) -> bool:
        """Whether an algorithm is one of this kind of key: a token never chooses how a key is read."""
        return self.kind == ("OKP" if algorithm == "EdDSA" else _KINDS[algorithm[0]])


class _Jwk(msgspec.Struct):
    kty: str
    kid: str | None = None


_KINDS = {"R": "RSA", "P": "RSA", "E": "EC"}
_READERS: Mapping[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}


def _verifying_keys(issuer: Issuer) -> tuple[_VerifyingKey, ...]:
    keys = []
    for text in issuer.keys:
        try:
            about = msgspec.json.decode(text, type=_Jwk)
            keys.append(_VerifyingKey(about.kid, about.kty, _READERS[about.kty].from_jwk(text)))
        except (jwt.PyJWTError, msgspec.DecodeError, ValueError, TypeError, KeyError):
            continue  # a curve that the library does not know, or no key at all, must not spoil the others
    return tuple(keys)


def _models(claim: object) -> tuple[str, ...]:
    """The aliases a claim lists; none if it is neither a list nor a text."""
    if isinstance(claim, str):
        return tuple(claim.split()[:MODELS_MAX])
    if isinstance(claim, list):
        return tuple(str(each) for each in claim[:MODELS_MAX])
    return ()


def _unverified(text: str) -> _Claimed:
    """Whom the token says it is from, to know whose keys to check it with."""
    parts = text.split(".")
    if len(parts) != _SEGMENTS:
        raise ValueError("a token has three parts")
    return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=_Claimed)
