"""Tests of tokens as keys: only what an issuer of the snapshot has signed, for us, for now, and for a tenant that exists."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any  # claims are JSON

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from controlplane.contract.issuers import Issuer
from controlplane.contract.keys import hash_key
from controlplane.contract.records import Outcome
from controlplane.contract.snapshot import KeyEntry, Snapshot, TenantPolicy
from proxy.call import Call
from proxy.runtime import Runtime, compile_runtime
from proxy.stages.identify import Identify
from proxy.stages.tokens import TOKEN_BYTES_MAX, NotAccepted, Tokens

NOW_S = 1_900_000_000  # in the future of whoever runs this, because the library asks its own clock about `iat`
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
PEPPER = b"p" * 32
SECRET = b"sk-heph-abc"


def jwk(document: str, kid: str) -> str:
    """A public key with a name."""
    return json.dumps({**json.loads(document), "kid": kid})


KEYS = (
    jwk(ECAlgorithm.to_jwk(EC_KEY.public_key()), "ec"),
    jwk(RSAAlgorithm.to_jwk(RSA_KEY.public_key()), "rsa"),
    jwk(OKPAlgorithm.to_jwk(ED_KEY.public_key()), "ed"),
)
ISSUER = Issuer(
    name="corp", issuer="https://id", audience=("heph", "other"), keys=KEYS, tenant_claim="org", models_claim="models"
)


def runtime(issuer: Issuer = ISSUER) -> Runtime:
    """One tenant with one virtual key and one issuer."""
    tenant = TenantPolicy(id="acme", models=("a", "b"))
    key = KeyEntry(hash=hash_key(SECRET, PEPPER), id="key_1", tenant="acme", addresses=("192.0.2.0/24",))
    return compile_runtime(Snapshot(version=1, created_us=0, tenants=(tenant,), keys=(key,), issuers=(issuer,)), {})


def signed(key: Any = EC_KEY, algorithm: str = "ES256", kid: str | None = "ec", **claims: Any) -> bytes:
    """A token; a claim that is None is left out."""
    whole = {"iss": "https://id", "aud": "heph", "exp": NOW_S * 2, "sub": "ana", "org": "acme", **claims}
    headers = None if kid is None else {"kid": kid}
    payload = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers).encode()


def nested(*, header: bool) -> bytes:
    """What looks like a token, one of whose parts is too deep for a reader that calls itself."""
    deep, flat = b'{"a":' + b"[" * 4_000, b'{"alg":"ES256"}'
    first, second = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in ((deep, flat) if header else (flat, deep)))
    return first + b"." + second + b".AA"


def tokens(now_s: float = NOW_S, remembered_max: int = 100) -> Tokens:
    """A fresh checker."""
    return Tokens(now_us=lambda: int(now_s * 1e6), remembered_max=remembered_max)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(EC_KEY, "ES256", "ec"), (RSA_KEY, "RS256", "rsa"), (ED_KEY, "EdDSA", "ed"), (EC_KEY, "ES256", None)],
)
def test_a_token_is_its_tenants(key: object, algorithm: str, kid: str | None) -> None:
    """A good token has the tenant of its claim, an id of issuer and bearer, and no more models than the tenant."""
    identity = tokens().identify(runtime(), signed(key, algorithm, kid, models=["b", "c"]))
    assert ("acme", "corp:ana", frozenset({"b"})) == (identity.tenant.id, identity.key.id, identity.models)


@pytest.mark.parametrize(
    ("claims", "models"),
    [({}, frozenset()), ({"models": "a c"}, frozenset({"a"})), ({"models": 7}, frozenset())],
)
def test_models_of_a_claim(claims: dict[str, Any], models: frozenset[str]) -> None:
    """Where a claim must list the models, a token without it, or with nonsense in it, may use none."""
    assert models == tokens().identify(runtime(), signed(**claims)).models


@pytest.mark.parametrize(
    "broken",
    [
        {"kty": "EC", "crv": "P-256", "x": "aa", "y": "bb", "kid": 5},
        {"kty": "EC", "crv": "P-256", "x": 5, "y": "bb"},
        {"kty": "EC", "crv": "secp0", "x": "aa", "y": "bb"},
        {"kty": "RSA", "n": "AQAB", "e": 65_537},
        {"kty": 1},
    ],
)
def test_a_key_that_cannot_be_read_spoils_no_other(broken: dict[str, object]) -> None:
    """A token that fits another key of its issuer is accepted as ever."""
    issuer = msgspec.structs.replace(ISSUER, keys=(json.dumps(broken), *KEYS))
    assert "acme" == tokens().identify(runtime(issuer), signed()).tenant.id


def test_a_token_may_live_for_ever() -> None:
    """A time of expiry that no clock reaches is one all the same."""
    assert "acme" == tokens().identify(runtime(), signed(exp=10**400)).tenant.id


def unsigned() -> bytes:
    """A token that says that it needs no signature."""
    nothing: Any = None
    claims = {"iss": "https://id", "aud": "heph", "exp": NOW_S * 2, "org": "acme"}
    return jwt.encode(claims, nothing, algorithm="none").encode()


def with_public_key_as_secret() -> bytes:
    """A token whose signature was made with the public key as a shared secret."""

    def part(document: dict[str, object]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=")

    body = part({"alg": "HS256", "kid": "ec"}) + b"." + part({"iss": "https://id", "aud": "heph", "exp": NOW_S * 2})
    return body + b"." + base64.urlsafe_b64encode(KEYS[0].encode()).rstrip(b"=")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (unsigned, "not signed in a way"),
        (with_public_key_as_secret, "not signed in a way"),
        (lambda: signed(OTHER_KEY), "not its issuer's"),
        (lambda: signed(RSA_KEY, "RS256", "ec"), "not its issuer's"),
        (lambda: signed(RSA_KEY, "RS512", "rsa"), "not signed in a way"),
        (lambda: signed(kid="unknown"), "not its issuer's"),
        (lambda: signed(iss="https://else"), "issuer is not known"),
        (lambda: signed(aud="somebody"), "udience"),
        (lambda: signed(aud=None), "aud"),
        (lambda: signed(exp=None), "exp"),
        (lambda: signed(exp=1_000_000), "expired"),
        (lambda: signed(nbf=NOW_S * 2), "not yet valid"),
        (lambda: signed(org="nobody"), "no tenant pays"),
        (lambda: signed(org=None), "no tenant pays"),
        (lambda: signed(org=["acme"]), "no tenant pays"),
        (lambda: b"a.b.c", "neither"),
        (lambda: b"\xff.\xff.\xff", "neither"),
        (lambda: nested(header=True), "neither"),
        (lambda: nested(header=False), "neither"),
        (lambda: signed()[:-10], "not its issuer's"),
    ],
)
def test_what_is_not_accepted(make: Callable[[], bytes], says: str) -> None:
    """Another's signature, another algorithm, another audience, another time and another tenant are refused with the reason."""
    with pytest.raises(NotAccepted, match=says):
        tokens().identify(runtime(), make())


@given(st.binary(max_size=300) | st.text("abcdefgh.-_", max_size=300).map(str.encode))
def test_any_bytes_are_a_token_or_not_accepted(token: bytes) -> None:
    """No bytes raise anything else."""
    with pytest.raises(NotAccepted):
        tokens().identify(runtime(), token)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_is_accepted(position: int, bit: int) -> None:
    """A token with one bit changed is not accepted, or is the same token to the letter of its encoding."""
    good = signed(exp=NOW_S * 2)
    changed = bytearray(good)
    changed[position % len(good)] ^= 1 << bit
    try:
        identity = tokens().identify(runtime(), bytes(changed))
    except NotAccepted:
        return
    head, body, signature = (base64.urlsafe_b64decode(part + b"==") for part in good.split(b"."))
    assert [head, body, signature] == [base64.urlsafe_b64decode(part + b"==") for part in bytes(changed).split(b".")]
    assert "acme" == identity.tenant.id


def test_a_remembered_token_still_expires() -> None:
    """What was believed once is believed until it expires, its leeway included, and not a moment longer."""
    moment = [float(NOW_S)]
    checker = Tokens(now_us=lambda: int(moment[0] * 1e6), remembered_max=10)
    snapshot, token = runtime(), signed(exp=NOW_S + 100)
    checker.identify(snapshot, token)
    moment[0] += 129
    checker.identify(snapshot, token)
    moment[0] += 1
    with pytest.raises(NotAccepted, match="expired"):
        checker.identify(snapshot, token)


def test_a_new_snapshot_is_asked_anew() -> None:
    """A token of an issuer that the next snapshot no longer names, or whose keys have changed, is worthless at once."""
    checker, token = tokens(), signed()
    checker.identify(runtime(), token)
    without = msgspec.structs.replace(ISSUER, keys=KEYS[1:])
    with pytest.raises(NotAccepted, match="not its issuer's"):
        checker.identify(runtime(without), token)


def test_what_is_remembered_is_bounded() -> None:
    """The oldest of too many tokens is forgotten and counted, and can be checked again."""
    checker, snapshot = tokens(remembered_max=2), runtime()
    for name in ("a", "b", "c", "a"):
        assert f"corp:{name}" == checker.identify(snapshot, signed(sub=name)).key.id
    assert 1 <= checker.forgotten_total


def entered(authorization: bytes, peer: str = "192.0.2.1", issuer: Issuer = ISSUER) -> Call:
    """A call that the stage has seen; its reply, if it was refused, is in `reply`."""
    headers = {b"authorization": b"Bearer " + authorization}
    call = Call(runtime(issuer), "chat", "/v1/chat/completions", headers, b"", call_id="c", started_us=0, started_ns=0)
    call.peer = peer
    call.reply = Identify(PEPPER, now_us=lambda: NOW_S * 1_000_000).enter(call)
    return call


def test_keys_and_tokens_side_by_side() -> None:
    """A virtual key and a token are both accepted; the token's bearer is the user unless a header says otherwise."""
    by_key, by_token = entered(SECRET), entered(signed())
    assert (None, "key_1", "") == (by_key.reply, by_key.identity and by_key.identity.key.id, by_key.user)
    assert (None, "corp:ana", "ana") == (by_token.reply, by_token.identity and by_token.identity.key.id, by_token.user)


@pytest.mark.parametrize(
    ("authorization", "peer", "status", "outcome"),
    [
        (SECRET, "198.51.100.1", 403, Outcome.FORBIDDEN),
        (SECRET, "", 403, Outcome.FORBIDDEN),
        (SECRET + b"x", "192.0.2.1", 401, Outcome.DENIED),
        (b"x" * (TOKEN_BYTES_MAX + 1), "192.0.2.1", 401, Outcome.DENIED),
        (b"a.b.c", "192.0.2.1", 401, Outcome.DENIED),
        (b"", "192.0.2.1", 401, Outcome.DENIED),
    ],
)
def test_who_is_kept_out(authorization: bytes, peer: str, status: int, outcome: Outcome) -> None:
    """A key from the wrong network, an unknown key, nonsense and nothing are refused, and name no tenant."""
    call = entered(authorization, peer)
    assert call.reply is not None
    assert (status, outcome, None) == (call.reply.status, call.reply.outcome, call.identity)
    assert b"acme" not in call.reply.body


def test_a_large_body_is_kept_for_a_bearer_of_a_token() -> None:
    """Whoever would be let in is known before the body has come; nobody else is."""
    stage, snapshot = Identify(PEPPER, now_us=lambda: NOW_S * 1_000_000), runtime()
    known = [stage.knows(snapshot, {b"x-api-key": key}) for key in (SECRET, signed(), SECRET + b"x", b"a.b.c", b"")]
    assert [True, True, False, False, False] == known
