"""What workers say to each other about a shared flight, sealed: whoever can publish in Redis but does not know the secret is not heard."""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeAlias

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from controlplane.contract.records import AttemptRecord

SEAL_BYTES = 16
TAG_BYTES = 16
_PERSON = b"heph-flight-3"  # words of another meaning of this module are not heard


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """A follower's worker wants a flight from a chunk on. inbox: where its answers go; position: chunks that it has.

    number: of all that its worker has followed, so that words that overtake each other can be told apart.
    """

    flight: bytes
    token: bytes
    inbox: bytes
    position: int = 0
    number: int = 0


class Detach(msgspec.Struct, frozen=True, tag="detach"):
    """A follower's worker wants no more of it. number: of the last `Attach` that this takes back."""

    flight: bytes
    token: bytes
    inbox: bytes
    number: int = 0


class Stay(msgspec.Struct, frozen=True, tag="stay"):
    """A follower's worker still wants it: who says nothing for long is counted out."""

    flight: bytes
    token: bytes
    inbox: bytes


class Bill(msgspec.Struct, frozen=True, tag="bill"):
    """What the upstream call cost, and between how many calls of which workers it is split; the leader's worker is the first.

    closed_ms: when, by the clock of the leader's host.
    """

    attempts: tuple[AttemptRecord, ...]
    shares: tuple[
        tuple[bytes, int], ...
    ]  # a worker's inbox, and how many of its calls were in the flight when it was closed
    closed_ms: int = 0


class Head(msgspec.Struct, frozen=True, tag="head", omit_defaults=True):
    """How the answer begins; the whole of it if it is no stream.

    refusal: the code of our own answer, with its message, for each client's protocol gives it another body. fell_back: why another model
    stood in. models: what the leader's key may use, as `Seals.models_tag` says it, where other models could stand in.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    stream: bool
    body: bytes = b""
    source: str = "upstream"
    outcome: str = "ok"
    error_code: str = ""
    deployment: str = ""
    model: str = ""
    refusal: str = ""
    message: str = ""
    fell_back: str = ""
    models: bytes = b""


class End(msgspec.Struct, frozen=True, tag="end", omit_defaults=True):
    """How the answer ended. outcome: empty if it is whole, else why it broke, with the upstream's own error event. bill: where others pay too."""

    outcome: str = ""
    message: str = ""
    event: bytes = b""
    finish_reason: str = ""
    ending: bytes = b""
    complete: bool = False
    usage_known: bool = False
    tokens: Tokens = NO_TOKENS
    bill: Bill | None = None


class News(msgspec.Struct, frozen=True, tag="news", omit_defaults=True):
    """More of a flight: chunks from a position on, the head before them, the end behind them."""

    flight: bytes
    token: bytes
    position: int = 0
    head: Head | None = None
    chunks: tuple[bytes, ...] = ()
    end: End | None = None
    leader: bytes = b""  # its inbox


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """There is no such flight (any more). alone: it cannot be shared; ask for yourself."""

    flight: bytes
    token: bytes
    alone: bool = False


Word: TypeAlias = Attach | Detach | Stay | News | Gone

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Attach | Detach | Stay | News | Gone).decode


class Seals:
    """Seals and opens words. secret: that only the proxies of this installation have."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.blake2b(secret, digest_size=32, person=_PERSON).digest()

    def tag_of(self, key: bytes) -> bytes:
        """A cache key's name among workers: hexadecimal, and without the secret nobody can tell what was asked."""
        return hashlib.blake2b(key, key=self._secret, digest_size=TAG_BYTES, person=_PERSON).hexdigest().encode()

    def models_tag(self, models: frozenset[str] | None) -> bytes:
        """What a key may use, short enough for a lease; equal for equal lists, None means all."""
        text = b"*" if models is None else "\n".join(sorted(models)).encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=TAG_BYTES, person=_PERSON).hexdigest().encode()

    def sealed(self, channel: bytes, word: Word) -> bytes:
        """A word for a channel; it is worth nothing in another."""
        return self.seal(channel, _encode(word))

    def opened(self, channel: bytes, data: bytes) -> Word | None:
        """The word, or None if it is not one of ours for this channel."""
        payload = self.unseal(channel, data)
        if payload is None:
            return None
        try:
            word: Word = _decode(payload)
        except msgspec.DecodeError:
            return None
        return word

    def seal(self, place: bytes, payload: bytes) -> bytes:
        """Bytes for a place in Redis: a channel, or a field of a hash."""
        return self._seal(place, payload) + payload

    def unseal(self, place: bytes, data: bytes) -> memoryview | None:
        """The bytes, or None if a proxy of this installation did not seal them for this place."""
        payload = memoryview(data)[SEAL_BYTES:]
        return payload if hmac.compare_digest(self._seal(place, payload), data[:SEAL_BYTES]) else None

    def _seal(self, place: bytes, payload: bytes | memoryview) -> bytes:
        seal = hashlib.blake2b(place, key=self._secret, digest_size=SEAL_BYTES, person=_PERSON)
        seal.update(payload)
        return seal.digest()
