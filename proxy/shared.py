"""The one door to the state that workers and hosts share in Redis: scripts, single commands and messages, with a breaker before it.

One server, one found through sentinels, or a cluster: the callers do not know which. A call waits at most `redis_timeout_s`, and `FIRST_FACTOR` times
that for the first answer of a script or command after a connection was made, when sockets are opened and scripts are sent; after
`redis_failures_max` failures in a row, or when the connection is lost, the door is *degraded*: everything raises SharedUnavailable at once
until a probe, every `redis_pause_s`, was answered in time. A slow Redis is worse than a dead one, so it is treated as one, and so is one that
takes no writes: a former master answers reads for ever, on connections that nobody closes. What a caller does then is its own decision, and
must never be to wait.

Names: every key begins with `prefix`, which two installations on one Redis do not share. All keys of one script must carry
the same `{hash tag}`, so that a cluster keeps them on one node.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias, cast  # redis-py's answers depend on the command

import msgspec
import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError, ResponseError

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.redis_address import parse_redis_address
from proxy.redis_clients import Client, open_client, open_pubsub
from proxy.settings import ProxySecrets

STALL_FACTOR = 2  # a deadline missed by this factor was missed by our own event loop
FIRST_FACTOR = 10  # of a deadline, as long as nothing of that kind was answered since the door opened
PROBE_MS = 1_000  # what a probe writes is gone by then
IDLE_CONNECTIONS = 8  # opened before the door is, so that the first calls at once do not wait for them
LISTEN_S = 5.0  # how long one wait for messages takes before the connection is asked whether it is alive
_TROUBLE = (RedisError, OSError, ValueError, EOFError, RecursionError)
_PERSON = b"heph-shared-1"
_SECRET_PERSON = b"heph-shared-2"

Answer: TypeAlias = "bytes | int | list[Answer] | None"
OnMessage = Callable[[bytes], None]

log = structlog.get_logger("proxy.shared")


class SharedUnavailable(Exception):
    """Redis is out, refused, or did not answer in time; what it was asked to do may or may not have happened."""


class Script(msgspec.Struct, frozen=True):
    """A Lua script that Redis runs as one step. name: for messages."""

    name: str
    text: str

    @property
    def sha(self) -> str:
        """How Redis calls it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class SharedState:
    """Scripts, commands and messages. Made before the loop runs; `open` begins to connect, and until then it is degraded."""

    def __init__(self, settings: ProxySettings, secrets: ProxySecrets) -> None:
        """Raises ValueError if `settings.redis` is not an address."""
        self._settings = settings
        self._address = parse_redis_address(settings.redis or "")
        self._password = None if secrets.redis_password is None else secrets.redis_password.reveal()
        tag = hashlib.blake2b(secrets.pepper_bytes, digest_size=6, person=_PERSON).hexdigest()
        self.prefix = f"heph:{tag}:".encode()
        self._probe_key = self.prefix + b"probe"
        self.secret = hashlib.blake2b(secrets.pepper_bytes, digest_size=32, person=_SECRET_PERSON).digest()  # for seals
        self.degraded = True
        self._client: Client | None = None
        self._failures = 0
        self._answered: set[str] = set()  # scripts and commands, since the door opened
        self._waiting = 0
        self._wanted = asyncio.Event()  # the keeper has something to do
        self._up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._shas: dict[str, str] = {}
        self._subscriptions: dict[bytes, list[OnMessage]] = {}
        self._subscribed = asyncio.Event()
        self._listening = asyncio.Event()
        self._confirmed: set[bytes] = set()
        self._complained = False
        self.commands_total = 0
        self.errors_total = 0
        self.busy_total = 0
        self.messages_total = 0
        self.degradations_total = 0

    def open(self) -> None:
        """Begins to connect; nobody need wait for that."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._wanted.set()
            self._tasks = [
                loop.create_task(self._keep(), name="shared-keeper"),
                loop.create_task(self._listen(), name="shared-messages"),
            ]

    @property
    def listening(self) -> bool:
        """Whether messages of all subscriptions arrive, as far as is known."""
        return self._listening.is_set()

    async def ready(self) -> None:
        """Waits until Redis has answered and all subscriptions stand; callers put a deadline around it."""
        await self._up.wait()
        if self._subscriptions:
            await self._listening.wait()

    async def run(self, script: Script, keys: Sequence[bytes], *args: bytes | int) -> Answer:
        """What a script answers. Raises SharedUnavailable, at once while degraded."""
        sha = self._shas.get(script.name)
        if sha is None:
            sha = self._shas[script.name] = script.sha
        try:
            return await self._ask(script.name, "EVALSHA", sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._once("EVAL", script.text, len(keys), *keys, *args, kind=script.name)

    async def ask(self, command: str, *args: bytes | str | int, key: bytes) -> Answer:
        """What one command answers; key: one of its arguments, which says where it goes. Raises SharedUnavailable."""
        if key not in args:
            raise ValueError(f"the arguments of {command} do not hold its key")
        return await self._once(command, *args, kind=command)

    async def publish(self, channel: bytes, data: bytes) -> None:
        """Sends a message to all subscribers, which may miss it. Raises SharedUnavailable."""
        await self.ask("PUBLISH", channel, data, key=channel)

    def subscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Calls `on_message` with each message from now on, also over a loss of the connection, in which messages are missed."""
        self._subscriptions.setdefault(channel, []).append(on_message)
        self._listening.clear()
        self._subscribed.set()

    async def aclose(self) -> None:
        """Closes everything; safe to call twice."""
        self._degrade("the proxy stops", quiet=True)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._drop_client()

    async def _once(self, command: str, *args: bytes | str | int, kind: str) -> Answer:
        try:
            return await self._ask(kind, command, *args)
        except NoScriptError as error:
            raise SharedUnavailable(str(error)) from error

    async def _ask(self, kind: str, command: str, *args: bytes | str | int) -> Answer:
        """kind: of which the first answer may take longer."""
        client = self._client
        if self.degraded or client is None:
            raise SharedUnavailable("Redis is out")
        if self._waiting >= self._settings.redis_waiting_max:
            self.busy_total += 1
            raise SharedUnavailable("too many wait for Redis")
        loop, timeout_s = asyncio.get_running_loop(), self._settings.redis_timeout_s
        if kind not in self._answered:
            timeout_s = max(timeout_s, min(timeout_s * FIRST_FACTOR, self._settings.redis_connect_timeout_s))
        asked_s = loop.time()
        self._waiting += 1
        self.commands_total += 1
        try:
            async with asyncio.timeout(timeout_s):
                answer = await cast("Awaitable[Answer]", client.execute_command(command, *args))
        except NoScriptError:
            raise
        except TimeoutError as error:
            self.errors_total += 1
            self._answered.add(kind)  # nobody waits for so long a second time
            if loop.time() - asked_s < timeout_s * STALL_FACTOR:
                self._failed("it answers too late")
            raise SharedUnavailable("Redis did not answer in time") from error
        except AuthenticationError as error:
            self.errors_total += 1
            self._degrade("it refuses the password")
            raise SharedUnavailable("Redis refuses the password") from error
        except ResponseError as error:
            self.errors_total += 1
            if isinstance(error, ReadOnlyError) or "-READONLY" in str(error):  # so older servers say it of a script
                self._degrade("it takes no writes any more")
            else:
                self._failed(f"it refuses a command: {error}")
            raise SharedUnavailable(f"Redis refuses: {error}") from error
        except _TROUBLE as error:
            self.errors_total += 1
            self._failed(str(error) or type(error).__name__)
            raise SharedUnavailable("the connection to Redis was lost") from error
        finally:
            self._waiting -= 1
        self._failures = 0
        self._answered.add(kind)
        return answer

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= self._settings.redis_failures_max:
            self._degrade(reason)

    def _degrade(self, reason: str, *, quiet: bool = False) -> None:
        """Opens the breaker: nothing is asked until the keeper's probe was answered."""
        if not self.degraded and not quiet:
            self.degradations_total += 1
            self._complain(reason)
        self.degraded = True
        self._up.clear()
        self._wanted.set()

    def _complain(self, reason: str) -> None:
        """Once until Redis is used again."""
        if not self._complained:
            self._complained = True
            log.warning("shared state is out; each worker goes on with its own share", reason=reason)

    async def _keep(self) -> None:
        """Whenever the door is degraded: a fresh client, a probe, a pause, again."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self.degraded:
                if await self._probe():
                    break
                await asyncio.sleep(self._settings.redis_pause_s)

    async def _probe(self) -> bool:
        """Whether Redis takes a write, and answers as fast as a command must be answered."""
        settings = self._settings
        await self._drop_client()
        try:
            async with asyncio.timeout(settings.redis_connect_timeout_s):
                client = self._client = open_client(self._address, password=self._password, settings=settings)
                await _ping(client)
                await asyncio.gather(*(_ping(client) for _ in range(IDLE_CONNECTIONS)))
                await cast("Awaitable[Answer]", client.execute_command("SET", self._probe_key, 1, "PX", PROBE_MS))
            async with asyncio.timeout(settings.redis_timeout_s * STALL_FACTOR):
                await _ping(client)
        except _TROUBLE as error:  # TimeoutError is an OSError
            self.errors_total += 1
            self._complain(str(error) or type(error).__name__)
            return False
        self._failures = 0
        self._answered.clear()
        self.degraded = False
        self._up.set()
        if self._complained:
            self._complained = False
            log.info("shared state is used again")
        return True

    async def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                await client.aclose()
            except _TROUBLE:
                return

    async def _listen(self) -> None:
        """Holds the subscriptions, and makes them anew after a loss."""
        while True:
            await self._subscribed.wait()
            try:
                await self._receive()
            except _TROUBLE:
                self._listening.clear()
                await asyncio.sleep(self._settings.redis_pause_s)

    async def _receive(self) -> None:
        """Reads messages until the connection is lost; a new subscription interrupts the wait for the next one."""
        pubsub, close = await open_pubsub(self._address, password=self._password, settings=self._settings)
        held: set[bytes] = set()
        self._confirmed.clear()
        wake = asyncio.ensure_future(self._subscribed.wait())
        message: asyncio.Future[dict[str, Any] | None] | None = None
        try:
            while True:
                self._subscribed.clear()
                fresh = self._subscriptions.keys() - held
                if fresh:
                    await pubsub.subscribe(*fresh)
                    held |= fresh
                if message is None:
                    message = asyncio.ensure_future(_message(pubsub))
                await asyncio.wait((message, wake), return_when=asyncio.FIRST_COMPLETED)
                if wake.done():
                    wake = asyncio.ensure_future(self._subscribed.wait())
                if message.done():
                    received, message = message.result(), None
                    await self._take(pubsub, received)
        finally:
            self._subscribed.set()  # what is subscribed to must be subscribed to again
            for future in (wake, message):
                if future is not None:
                    future.cancel()
            await close()

    async def _take(self, pubsub: PubSub, message: dict[str, Any] | None) -> None:
        if message is None:
            await pubsub.ping()  # raises if the connection is gone
        elif message["type"] == "subscribe":
            self._confirmed.add(message["channel"])
            if self._confirmed >= self._subscriptions.keys():
                self._listening.set()
        else:
            self._deliver(message)

    def _deliver(self, message: dict[str, Any]) -> None:
        if message["type"] != "message":
            return
        self.messages_total += 1
        for on_message in self._subscriptions.get(message["channel"], ()):
            try:
                on_message(message["data"])
            except Exception:  # one that is not understood must not end all others
                self.errors_total += 1
                log.exception("a message could not be taken")


def watch_shared(watch: Callable[[str, str, Callable[[], float]], None], shared: SharedState | None) -> None:
    """Shows the door's figures; without Redis they are there all the same, and stay zero."""
    for name, text in (
        ("degraded", "1 while a configured Redis is out and each worker uses its own share, else 0."),
        ("listening", "1 while what other workers say is heard."),
        ("commands_total", "Commands and scripts sent to the shared state."),
        ("errors_total", "Commands that were late, refused or lost, and probes that failed."),
        ("busy_total", "Commands not sent because too many waited for Redis."),
        ("messages_total", "Messages received from other workers."),
        ("degradations_total", "Times that the shared state was taken out of use."),
    ):
        watch(f"shared_{name}", text, _figure(shared, name))


def _figure(shared: SharedState | None, name: str) -> Callable[[], float]:
    return lambda: 0.0 if shared is None else float(getattr(shared, name))


async def _message(pubsub: PubSub) -> dict[str, Any] | None:
    coroutine: Coroutine[Any, Any, dict[str, Any] | None] = pubsub.get_message(timeout=LISTEN_S)
    return await coroutine


async def _ping(client: Client) -> None:
    await cast("Awaitable[Answer]", client.execute_command("PING"))
