"""The simulated provider as a whole: its sockets, its upstreams, and the closing and opening that an outage asks for."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from controlplane.clock import US_PER_S, Clock, SystemClock
from controlplane.demo.faults import Fault, FaultError, Faults, check_fault
from controlplane.demo.provider.admin import Admin
from controlplane.demo.provider.config import ProviderConfig
from controlplane.demo.provider.http import Connections, Handler
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.upstream import Upstream

CHECK_EVERY_S = 0.02  # how late a scripted outage of the socket may begin or end
BACKLOG = 4096
_ADMIN_CONNECTIONS_MAX = 256


@dataclass(slots=True)
class _Gate:
    """One port. The held socket is bound but never listens: it keeps the port ours while connections are refused."""

    connections: Connections
    upstream: Upstream
    held: socket.socket
    listening: socket.socket | None = None  # None: connections are refused
    server: asyncio.Server | None = None  # accepts from `listening`


class Provider:
    """A simulated provider inside the running loop; `run` is the same as a process of its own."""

    def __init__(self, config: ProviderConfig | None = None, *, clock: Clock | None = None) -> None:
        """clock: the time line of faults and rate limits, and the dates in answers; latency is real time always."""
        self.config = config or ProviderConfig()
        self._clock = clock or SystemClock()
        self.faults = Faults((), seed=self.config.seed, now=self._clock.monotonic)
        self._inference = Inference(
            seed=self.config.seed,
            answers_bytes_max=self.config.answers_bytes_max,
            obfuscation=self.config.obfuscation,
        )
        self.upstreams = tuple(
            Upstream(
                upstream.name,
                self.config,
                faults=self.faults,
                inference=self._inference,
                now_s=self._now_s,
                monotonic=self._clock.monotonic,
            )
            for upstream in self.config.upstreams
        )
        self._gates: list[_Gate] = []
        self._admin: asyncio.Server | None = None
        self._admin_connections: Connections | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reconciling = asyncio.Lock()

    @property
    def port(self) -> int:
        """The port of the first upstream."""
        return self.upstreams[0].port

    @property
    def ports(self) -> dict[str, int]:
        """Ports by the upstreams' names."""
        return {upstream.name: upstream.port for upstream in self.upstreams}

    @property
    def base_url(self) -> str:
        """The first upstream as an OpenAI client wants it."""
        return f"http://{self.config.host}:{self.port}/v1"

    @property
    def admin_port(self) -> int:
        """The port of the administration."""
        if self._admin is None:
            raise RuntimeError("the provider is not started")
        return int(self._admin.sockets[0].getsockname()[1])

    @property
    def admin_url(self) -> str:
        """The administration, without a path."""
        return f"http://{self.config.host}:{self.admin_port}"

    async def start(self) -> None:
        """Binds all ports, then serves. Raises OSError when a port is taken, FaultError when a scripted fault makes no sense."""
        self._inference.warm()
        try:
            for upstream, wanted in zip(self.upstreams, self.config.upstreams, strict=True):
                held = _bound(self.config.host, wanted.port)
                upstream.port = int(held.getsockname()[1])
                self._gates.append(_Gate(self._connections(upstream, self.config.connections_max), upstream, held))
            for fault in self.config.faults:
                self.faults.add(self._checked(fault))
            await self.reconcile()
            await self._start_admin()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [asyncio.create_task(self._watch_faults()), asyncio.create_task(self._close_idle())]

    async def stop(self) -> None:
        """Stops serving and resets what is open; safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gates, self._gates = self._gates, []
        for gate in gates:
            _shut(gate)
            gate.held.close()
        if self._admin is not None:
            self._admin.close()
            if self._admin_connections is not None:
                self._admin_connections.abort_all()
            await self._admin.wait_closed()
            self._admin = None

    async def reconcile(self) -> None:
        """Closes the sockets of upstreams that are to refuse connections and opens the others. Called when time or faults change."""
        self._switch()
        async with self._reconciling:
            for gate in self._gates:
                listening = gate.listening
                if listening is None or gate.server is not None:
                    continue
                server = await asyncio.get_running_loop().create_server(
                    gate.connections.make, sock=listening, backlog=BACKLOG
                )
                if gate.listening is listening:
                    gate.server = server
                else:  # closed in the meantime
                    server.close()

    def _switch(self) -> None:
        """Refuses from now on, or lets the kernel accept until a server takes over; does not wait."""
        for gate in self._gates:
            refused = self.faults.refused(upstream=gate.upstream.name, port=gate.upstream.port)
            if refused and gate.listening is not None:
                _shut(gate)
            elif not refused and gate.listening is None:
                gate.listening = _bound(self.config.host, gate.upstream.port)
                gate.listening.listen(BACKLOG)

    def _checked(self, fault: Fault) -> Fault:
        """The fault itself. Raises FaultError when it contradicts itself or addresses an upstream that is not here."""
        known = {"", *self.ports, *map(str, self.ports.values())}
        if fault.upstream not in known:
            names = ", ".join(f"{name} ({port})" for name, port in self.ports.items())
            raise FaultError(f"there is no upstream '{fault.upstream}'; there are: {names}")
        return check_fault(fault)

    async def _start_admin(self) -> None:
        admin = Admin(
            self.faults, self.upstreams, check=self._checked, changed=self._faults_changed, refresh=self._refresh_stats
        )
        self._admin_connections = self._connections(admin, _ADMIN_CONNECTIONS_MAX)
        wanted = self.config.admin_port
        if wanted is None:
            chosen = [upstream.port for upstream in self.config.upstreams]
            wanted = max(chosen) + 1 if all(chosen) else 0
        self._admin = await asyncio.get_running_loop().create_server(
            self._admin_connections.make, self.config.host, wanted
        )

    def _now_s(self) -> int:
        return self._clock.now_us() // US_PER_S

    def _connections(self, handler: Handler, connections_max: int) -> Connections:
        return Connections(
            handler,
            body_bytes_max=self.config.body_bytes_max,
            connections_max=connections_max,
            pipelined_max=self.config.pipelined_max,
        )

    def _faults_changed(self) -> None:
        self._switch()
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(self.reconcile()))

    def _refresh_stats(self) -> None:
        for gate in self._gates:
            gate.upstream.stats.connections = len(gate.connections.open)
            gate.upstream.stats.turned_away = gate.connections.turned_away
            gate.upstream.stats.unreadable = gate.connections.unreadable
            gate.upstream.stats.held_back = gate.connections.held_back
            gate.upstream.stats.answers_kept = len(self._inference.memory)
            gate.upstream.stats.answers_evicted = self._inference.memory.evicted

    async def _watch_faults(self) -> None:
        """Follows the time line of outages; runs until it is cancelled."""
        while True:
            await self._clock.sleep(CHECK_EVERY_S)
            if self.faults or any(gate.listening is None for gate in self._gates):
                await self.reconcile()

    async def _close_idle(self) -> None:
        """Closes connections that were idle for idle_s or a little longer; runs until it is cancelled."""
        while True:
            await self._clock.sleep(self.config.idle_s)
            for gate in self._gates:
                gate.connections.close_idle()


def run(config: ProviderConfig, *, started: Callable[[Provider], None] | None = None) -> None:
    """Serves in this process until SIGINT or SIGTERM. started: called once everything listens."""
    uvloop.run(_serve(config, started))


async def _serve(config: ProviderConfig, started: Callable[[Provider], None] | None) -> None:
    provider = Provider(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    await provider.start()
    try:
        if started is not None:
            started(provider)
        await stopping.wait()
    finally:
        await provider.stop()


def _bound(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen. Raises OSError when somebody else listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.settimeout(0)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _shut(gate: _Gate) -> None:
    """Stops listening and resets the open connections."""
    server, gate.server = gate.server, None
    listening, gate.listening = gate.listening, None
    if server is not None:
        server.close()
    if listening is not None:
        listening.close()
    gate.connections.abort_all()
