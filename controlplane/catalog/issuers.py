"""The public keys of token issuers, fetched here so that no proxy ever waits for one, and kept on disk for the next start."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import msgspec
import structlog

from controlplane.catalog.file import IssuerEntry
from controlplane.contract.issuers import Issuer

DOCUMENT_BYTES_MAX = 256 * 1024
KEYS_MAX = 50
RSA_BITS_MIN = 2_048
TIMEOUT_S = 10.0
DISCOVERY_PATH = "/.well-known/openid-configuration"

_PUBLIC_FIELDS = ("kty", "kid", "use", "alg", "n", "e", "crv", "x", "y")  # whatever else stands there, goes no further
_KINDS = frozenset(("RSA", "EC", "OKP"))

log = structlog.get_logger("catalog.issuers")


class _KeySet(msgspec.Struct):
    keys: list[dict[str, object]] = []


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


class KeysUnavailable(Exception):
    """An issuer's keys cannot be had now; those of last time stay."""


class PublicKeys:
    """What each issuer's keys were when it was asked last."""

    def __init__(self, place: Path) -> None:
        """place: folder in which the last good keys are kept; need not exist yet."""
        self._place = place
        self._complained: set[str] = set()
        self._asked: dict[IssuerEntry, int] = {}  # when, in Unix microseconds
        self.keys: Mapping[str, tuple[str, ...]] = {}  # by `source_of` the issuer; swapped as a whole

    def load(self, issuers: Sequence[IssuerEntry]) -> None:
        """What was kept of them on disk. Blocking."""
        found = dict(self.keys)
        for entry in issuers:
            try:
                data = (self._place / f"{_file_name(entry)}.json").read_bytes()
                found[source_of(entry)] = read_keys(data)
            except (OSError, KeysUnavailable):
                continue
        self.keys = found

    async def turn(self, issuers: Sequence[IssuerEntry], *, now_us: int) -> None:
        """Asks the issuers whose time has come; one that cannot be asked keeps the keys it had, and one that is gone loses them."""
        due = [entry for entry in issuers if now_us >= self._asked.get(entry, 0) + round(entry.refresh_s * 1e6)]
        if not due and self.keys.keys() <= {source_of(entry) for entry in issuers}:
            return
        self._asked = {entry: now_us if entry in due else self._asked[entry] for entry in issuers}
        found = {source: self.keys[source] for source in map(source_of, issuers) if source in self.keys}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            for entry in due:
                try:
                    data = await _document(entry, client)
                    keys = read_keys(data)
                except (KeysUnavailable, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                    self._complain(entry.name, str(error) or type(error).__name__)
                    continue
                self._complained.discard(entry.name)
                found[source_of(entry)] = keys
                if keys != self.keys.get(source_of(entry)):
                    await self._keep(entry, data)
        if found != self.keys:
            self.keys = found

    async def _keep(self, entry: IssuerEntry, data: bytes) -> None:
        """For the next start; a disk that takes nothing must not keep fresh keys from the proxies."""
        try:
            await asyncio.to_thread(self._write, entry, data)
        except OSError as error:
            log.warning("an issuer's keys cannot be kept for the next start", issuer=entry.name, reason=str(error))

    def _write(self, entry: IssuerEntry, data: bytes) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        path = self._place / f"{_file_name(entry)}.json"
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(path)

    def _complain(self, name: str, reason: str) -> None:
        """Once until it can be asked again."""
        if name not in self._complained:
            self._complained.add(name)
            log.warning("an issuer's keys cannot be had; the last ones stay", issuer=name, reason=reason)


def source_of(entry: IssuerEntry) -> str:
    """Whose keys, and from where: an issuer that was put in another's place under its name never gets that one's keys."""
    return "\n".join((entry.name, entry.issuer, entry.jwks_url or "", entry.jwks_file or ""))


def issuer_of(entry: IssuerEntry, keys: tuple[str, ...]) -> Issuer:
    """An issuer as proxies know it."""
    return Issuer(
        name=entry.name,
        issuer=entry.issuer,
        audience=entry.audience,
        keys=keys,
        algorithms=entry.algorithms,
        tenant=entry.tenant or "",
        tenant_claim=entry.tenant_claim or "",
        models_claim=entry.models_claim or "",
        user_claim=entry.user_claim,
        leeway_s=entry.leeway_s,
    )


def read_keys(data: bytes) -> tuple[str, ...]:
    """The signing keys of a JSON Web Key Set, each as the JSON of its public fields.

    Raises KeysUnavailable if it is none, holds no usable key, or too many.
    """
    try:
        documents = msgspec.json.decode(data, type=_KeySet).keys
    except (msgspec.DecodeError, RecursionError) as error:
        raise KeysUnavailable(f"it is no JSON Web Key Set: {error}") from error
    usable = tuple(
        msgspec.json.encode({name: document[name] for name in _PUBLIC_FIELDS if name in document}).decode()
        for document in documents[: KEYS_MAX + 1]
        if _is_usable(document)
    )
    if not usable:
        raise KeysUnavailable("it holds no public key for signatures")
    if len(documents) > KEYS_MAX:
        raise KeysUnavailable(f"it holds more than {KEYS_MAX} keys")
    return usable


def _is_usable(document: Mapping[str, object]) -> bool:
    if not all(isinstance(document.get(name), str | None) for name in _PUBLIC_FIELDS):
        return False
    if document.get("kty") not in _KINDS or document.get("use", "sig") != "sig":
        return False
    if document["kty"] != "RSA":
        return True
    modulus = document.get("n")
    if not isinstance(modulus, str):
        return False
    try:
        return len(base64.urlsafe_b64decode(modulus + "==").lstrip(b"\0")) * 8 >= RSA_BITS_MIN
    except ValueError:
        return False


async def _document(entry: IssuerEntry, client: httpx.AsyncClient) -> bytes:
    """The key set, from its file, its address, or where the issuer's own configuration says it is."""
    if entry.jwks_file is not None:
        data = await asyncio.to_thread(Path(entry.jwks_file).read_bytes)
        if len(data) > DOCUMENT_BYTES_MAX:
            raise KeysUnavailable(f"{entry.jwks_file} is larger than {DOCUMENT_BYTES_MAX} bytes")
        return data
    if entry.jwks_url is not None:
        return await _fetch(entry.jwks_url, client)
    try:
        about = msgspec.json.decode(await _fetch(entry.issuer.rstrip("/") + DISCOVERY_PATH, client), type=_Discovery)
    except (msgspec.DecodeError, RecursionError) as error:
        raise KeysUnavailable(f"its OpenID configuration is not valid: {error}") from error
    if about.issuer != entry.issuer:
        raise KeysUnavailable(f"its OpenID configuration is of another issuer, `{about.issuer[:200]}`")
    if not about.jwks_uri.startswith("https://") and entry.issuer.startswith("https://"):
        raise KeysUnavailable("its OpenID configuration names keys at an address without encryption")
    return await _fetch(about.jwks_uri, client)


async def _fetch(url: str, client: httpx.AsyncClient) -> bytes:
    data = bytearray()
    async with client.stream("GET", url, headers={"accept": "application/json"}) as answer:
        if answer.status_code != httpx.codes.OK:
            raise KeysUnavailable(f"it answered with status {answer.status_code}")
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > DOCUMENT_BYTES_MAX:
                raise KeysUnavailable(f"its answer is larger than {DOCUMENT_BYTES_MAX} bytes")
    return bytes(data)


def _file_name(entry: IssuerEntry) -> str:
    """A name that is safe in a folder, and this source's alone."""
    return hashlib.sha256(source_of(entry).encode()).hexdigest()[:32]
