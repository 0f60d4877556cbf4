"""The administration port: faults are switched and the truth about what was served is read here, also during an outage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import yaml

from controlplane.demo.faults import Fault, FaultError, Faults
from controlplane.demo.provider.http import Connection, Request, whole
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.stats import UpstreamStats
from controlplane.demo.provider.upstream import Upstream

_HELP = "try GET, POST or DELETE /_faults, GET or DELETE /_stats, GET /_health"


class Refused(msgspec.Struct, frozen=True):
    """An answer to bad input: what is wrong and what to do."""

    error: str


class Admin:
    """Answers the requests of the administration port; the JSON or YAML of one fault, or of a list of them, sets faults."""

    def __init__(
        self,
        faults: Faults,
        upstreams: Sequence[Upstream],
        *,
        check: Callable[[Fault], Fault],
        changed: Callable[[], None],
        refresh: Callable[[], None],
    ) -> None:
        """check: raises FaultError. changed: called after faults were set or cleared. refresh: called before counts are read."""
        self._faults = faults
        self._upstreams = upstreams
        self._check = check
        self._changed = changed
        self._refresh = refresh

    def handle(self, connection: Connection, request: Request) -> None:
        """Answers at once."""
        status, document = self._answer(request)
        body = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        connection.reply(whole(status, body, keep_alive=request.keep_alive))

    def worded(self, request: Request, problem: Problem) -> Problem:  # noqa: ARG002 - one language for all
        """Bad requests are told of in OpenAI's words."""
        return problem

    def _answer(self, request: Request) -> tuple[int, object]:
        path = request.path.decode("latin-1").rstrip("/")
        method = request.method.decode("latin-1")
        if path == "/_faults" or path.startswith("/_faults/"):
            return self._on_faults(method, path.removeprefix("/_faults").removeprefix("/"), request.body)
        if path == "/_stats" and method in ("GET", "DELETE"):
            return 200, self._on_stats(reset=method == "DELETE")
        if path in ("/_health", "/livez", "/readyz") and method == "GET":
            return 200, {"status": "ok", "ports": {upstream.name: upstream.port for upstream in self._upstreams}}
        return 404, Refused(f"there is no {method} {path or '/'}; {_HELP}")

    def _on_faults(self, method: str, fault_id: str, body: bytes) -> tuple[int, object]:
        if method == "GET":
            found = [status for status in self._faults.status() if fault_id in ("", status.fault.id)]
            return (404, Refused(f"no fault has the id '{fault_id}'")) if fault_id and not found else (200, found)
        if method in ("POST", "PUT"):
            try:
                added = self._add(body, fault_id)
            except (FaultError, msgspec.ValidationError) as error:
                return 400, Refused(str(error))
            self._changed()
            return 200, added
        if method == "DELETE":
            cleared = self._faults.clear(fault_id or None)
            self._changed()
            return (
                (404, Refused(f"no fault has the id '{fault_id}'"))
                if fault_id and not cleared
                else (200, {"cleared": cleared})
            )
        return 405, Refused(f"{method} does nothing here; {_HELP}")

    def _add(self, body: bytes, fault_id: str) -> list[Fault]:
        """Sets the faults of a body: all of them or, when one is bad, none. Raises FaultError or ValidationError."""
        try:
            document = yaml.safe_load(body)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise FaultError(f"the body is neither JSON nor YAML: {error}") from error
        if isinstance(document, dict) and "faults" in document:
            document = document["faults"]
        faults = msgspec.convert(document if isinstance(document, list) else [document], list[Fault])
        if fault_id:
            if len(faults) != 1:
                raise FaultError("a path with an id takes exactly one fault")
            faults = [msgspec.structs.replace(faults[0], id=fault_id)]
        for fault in faults:
            self._check(fault)
        return [self._faults.add(fault) for fault in faults]

    def _on_stats(self, *, reset: bool) -> dict[str, UpstreamStats]:
        self._refresh()
        counts = {upstream.name: upstream.stats for upstream in self._upstreams}
        if reset:
            for upstream in self._upstreams:
                upstream.reset_stats()
        return counts
