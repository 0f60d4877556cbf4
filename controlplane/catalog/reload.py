"""Hot reload: the file and the journal are followed; a change is applied as a whole, or refused while the last good one stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from watchfiles import awatch

from controlplane.catalog.changes import config_changes, restart_needed, state_changes
from controlplane.catalog.compile import Prices, compile_snapshot, next_change_us
from controlplane.catalog.file import ConfigFile
from controlplane.catalog.issuers import PublicKeys
from controlplane.catalog.load import Loaded, load
from controlplane.catalog.publish import Publisher
from controlplane.catalog.state import StateReader
from controlplane.clock import Clock
from controlplane.contract.snapshot import Snapshot
from controlplane.errors import ConfigError, HephaestusError
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal
from controlplane.logs import masked
from controlplane.metrics import CatalogMetrics

STREAM = "config"
PROBLEMS_MAX = 20
MOUNTED = ("..data",)  # the link that is swapped when a mounted configuration changes


class CatalogChanged(msgspec.Struct, frozen=True, tag="catalog.changed"):
    """A changed configuration file was applied. restart: settings that wait for a restart."""

    digest: str
    changed: tuple[str, ...]
    restart: tuple[str, ...] = ()


class CatalogRefused(msgspec.Struct, frozen=True, tag="catalog.refused"):
    """A changed configuration file was refused; the last good one stays in force. problems: with file and line, secrets masked."""

    problems: tuple[str, ...]


class Reloader:
    """Keeps the publisher's snapshot up with the file, the journal and the clock; `turn` does it once, `run` for ever.

    applied: called with each configuration that came into force, the first one left out; it must not block.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        journal: Journal,
        reader: StateReader,
        publisher: Publisher,
        prices: Prices,
        clock: Clock,
        metrics: CatalogMetrics,
        applied: Callable[[ConfigFile], None] = lambda _config: None,
        public_keys: PublicKeys | None = None,
    ) -> None:
        self._path = Path(loaded.path)
        self._running = loaded
        self._config = loaded.config
        self._journal = journal
        self._reader = reader
        self._state = reader.state
        self._publisher = publisher
        self._prices = prices
        self._clock = clock
        self._metrics = metrics
        self._applied = applied
        self._public_keys = public_keys
        self._published_keys = {} if public_keys is None else public_keys.keys
        self._digest = loaded.digest
        self._seen: tuple[int, ...] | None = None
        self._done: tuple[int, ...] | None = None
        self._unpublished: tuple[str, ...] = ()
        self._due_us = next_change_us(self._state, self._config, now_us=clock.now_us())
        self._problems: tuple[str, ...] = ()
        self._turning = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        loaded: Loaded,
        *,
        journal: Journal,
        prices: Prices,
        clock: Clock,
        metrics: CatalogMetrics,
        applied: Callable[[ConfigFile], None] = lambda _config: None,
        public_keys: PublicKeys | None = None,
    ) -> Reloader:
        """A reloader with a publisher whose first snapshot holds the file and everything that the journal has now.

        public_keys: of the issuers of tokens, kept fresh by somebody else.
        """
        reader = StateReader(journal)
        state = await asyncio.to_thread(reader.refresh)
        found = {} if public_keys is None else public_keys.keys
        compiled = compile_snapshot(loaded.config, state, prices, now_us=clock.now_us(), public_keys=found)
        publisher = await Publisher.open(
            journal, compiled, clock=clock, settings=loaded.settings.publish, metrics=metrics
        )
        return cls(
            loaded,
            journal=journal,
            reader=reader,
            publisher=publisher,
            prices=prices,
            clock=clock,
            metrics=metrics,
            applied=applied,
            public_keys=public_keys,
        )

    @property
    def publisher(self) -> Publisher:
        """Who hands out the snapshots."""
        return self._publisher

    @property
    def config(self) -> ConfigFile:
        """The configuration in force."""
        return self._config

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the file on disk is refused; empty while it is in force."""
        return self._problems

    async def run(self, stop: asyncio.Event, *, every_s: float) -> None:
        """Turns at each change of the file's folder, and otherwise every `every_s` seconds, until told to stop.

        A turn that fails is logged and tried again: a journal that does not answer must not end the loop.
        """
        async for _ in awatch(
            self._path.resolve().parent,
            watch_filter=lambda _change, name: Path(name).name in {self._path.name, *MOUNTED},
            step=50,
            debounce=200,
            rust_timeout=max(1, round(every_s * 1000)),
            yield_on_timeout=True,
            recursive=False,
            stop_event=stop,
        ):
            try:
                await self.turn()
            except HephaestusError as error:
                structlog.get_logger(__name__).warning("catalog not refreshed", code=error.code, reason=error.message)

    async def turn(self) -> bool:
        """Looks once at the file, the journal and the clock, and publishes what changed; whether anything did.

        A changed file is applied by the second turn that sees it, so that one that is still being written is left alone.
        Raises JournalUnavailable; the next turn then does what this one could not.
        """
        async with self._turning:
            await self._turn_file()
            state = await asyncio.to_thread(self._reader.refresh)
            now_us = self._clock.now_us()
            due = self._due_us is not None and now_us >= self._due_us
            found = {} if self._public_keys is None else self._public_keys.keys
            fresh = found != self._published_keys
            if not self._unpublished and state.position == self._state.position and not due and not fresh:
                return False
            compiled = await asyncio.to_thread(
                compile_snapshot, self._config, state, self._prices, now_us=now_us, public_keys=found
            )
            words = self._unpublished + state_changes(self._state, state)
            if fresh:
                words += ("issuers: other public keys",)
            before = self._publisher.current.version
            await self._publisher.publish(compiled, words or ("a lease or a key expired, or a price changed",))
            self._state, self._unpublished, self._published_keys = state, (), found
            self._due_us = next_change_us(state, self._config, now_us=now_us)
            self._metrics.leases.set(sum(lease.expires_us > now_us for lease in state.leases.values()))
            return self._publisher.current.version != before

    async def caught_up(self) -> Snapshot:
        """The snapshot that holds everything which is in the journal now, such as a lease that was just granted."""
        await self.turn()
        return self._publisher.current

    async def _turn_file(self) -> None:
        stamp = await asyncio.to_thread(_stamp, self._path)
        if stamp != self._seen:
            self._seen = stamp
            return
        if stamp == self._done:
            return
        try:
            loaded = await asyncio.to_thread(self._load)
        except ConfigError as error:
            await self._refuse(error)
        else:
            if await asyncio.to_thread(_stamp, self._path) != stamp:
                return
            await self._apply(loaded)
        self._done = stamp

    def _load(self) -> Loaded:
        """The file as it is now. A whole configuration that has gone is a write that failed, and no wish to serve nobody."""
        loaded = load(self._path)
        if not loaded.bound.lines and self._config != ConfigFile():
            hint = "to take away everything on purpose, write `{}`"
            raise ConfigError.at(str(self._path), "the file is empty", hint=hint)
        return loaded

    async def _apply(self, loaded: Loaded) -> None:
        changed = config_changes(self._config, loaded.config)
        restart = restart_needed(self._running.settings, loaded.settings)
        if loaded.digest == self._digest or not (changed or restart):
            self._metrics.reloads.labels("unchanged").inc()
        else:
            await self._append(CatalogChanged(loaded.digest, changed, restart))
            self._metrics.reloads.labels("applied").inc()
            structlog.get_logger(__name__).info("configuration applied", changed=changed, waits_for_restart=restart)
            self._unpublished += changed
        self._config, self._digest, self._problems = loaded.config, loaded.digest, ()
        self._metrics.refused.set(0)
        if changed:
            self._applied(loaded.config)

    async def _refuse(self, error: ConfigError) -> None:
        problems = tuple(masked(str(problem)) for problem in error.problems[:PROBLEMS_MAX])
        if problems != self._problems:
            await self._append(CatalogRefused(problems))
            self._metrics.reloads.labels("refused").inc()
            structlog.get_logger(__name__).error("configuration refused, the last good one stays", problems=problems)
        self._problems = problems
        self._metrics.refused.set(1)

    async def _append(self, payload: CatalogChanged | CatalogRefused) -> None:
        event = NewEvent(payload=payload, actor="reload", occurred_us=self._clock.now_us())
        await asyncio.to_thread(self._journal.append, STREAM, None, [event])


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file changes; empty when there is none. A link is followed, since that is how mounted files are swapped."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
