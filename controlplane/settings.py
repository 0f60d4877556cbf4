"""The `server:` section of the configuration file: what a process needs to start; a change needs a restart.

Every bound of the control plane is here, with its unit in its name and a sentence that docs/reference/settings.md repeats.
`controlplane.catalog.load` reads the file; `described` lists every setting for the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from controlplane.contract.proxy_settings import ProxySettings

DATA_DIR_VARIABLE = "${data_dir}"


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Autonomy(StrEnum):
    """How far healing may go by itself, from least to most."""

    OBSERVE = "observe"  # notes what it would have done
    SUGGEST = "suggest"  # tells people what it would do
    APPROVE = "approve"  # acts when a person has approved
    AUTO = "auto"  # acts


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the control plane's log goes."""

    file: Annotated[
        str | None, Meta(description="Log file, as JSON lines, rotated; without it the log goes to standard error.")
    ] = None
    level: Annotated[LogLevel, Meta(description="Least important level that is logged.")] = LogLevel.INFO
    rotate_bytes: Annotated[int, Meta(ge=4096, description="A log file is rotated when it would grow beyond this.")] = (
        50 * 1024 * 1024
    )
    keep: Annotated[int, Meta(ge=1, le=1000, description="How many rotated files are kept.")] = 5


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long telemetry is kept; payloads have their own policy per tenant."""

    calls_days: Annotated[int, Meta(ge=1, description="Days that rows of `calls` are kept.")] = 90
    attempts_days: Annotated[int, Meta(ge=1, description="Days that rows of `attempts` are kept.")] = 90
    rollups_days: Annotated[int, Meta(ge=1, description="Days that the minute roll-ups are kept.")] = 400
    status_days: Annotated[int, Meta(ge=1, description="Days that rows of `deployment_status` are kept.")] = 30
    events_days: Annotated[
        int, Meta(ge=1, description="Days that copies of incident and run events are kept for analytics.")
    ] = 400


class IngestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what the proxies may send."""

    batch_bytes_max: Annotated[int, Meta(ge=1024, description="Largest batch that is accepted from a proxy.")] = (
        128 * 1024 * 1024
    )
    waiting_max: Annotated[
        int, Meta(ge=1, description="Batches that may wait for the store; more are told to come again later.")
    ] = 64
    status_every_s: Annotated[
        float, Meta(gt=0, description="How often a proxy's status is stored when nothing in it changed.")
    ] = 10.0
    proxies_max: Annotated[
        int, Meta(ge=1, description="Proxy workers whose last word is remembered; the one silent longest is forgotten.")
    ] = 1_000


class PublishSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the catalog reaches the proxies."""

    reload_every_s: Annotated[
        float, Meta(gt=0, description="How often the journal is looked at for keys and leases.")
    ] = 0.5
    wait_s_max: Annotated[
        float, Meta(gt=0, description="Longest that one long poll may wait for a newer snapshot.")
    ] = 60.0
    waiters_max: Annotated[int, Meta(ge=1, description="Long polls that may wait at once.")] = 1_000
    proxies_max: Annotated[int, Meta(ge=1, description="Proxy workers that are kept track of at once.")] = 1_000
    proxy_expiry_s: Annotated[
        float, Meta(gt=0, description="A proxy that has not reported for this long is no longer counted as live.")
    ] = 10.0


class DoorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The read-only ClickHouse HTTP door on the embedded store."""

    enabled: Annotated[bool, Meta(description="Whether `/clickhouse/` answers queries.")] = True
    user: Annotated[str, Meta(min_length=1, description="Name of the read-only database user.")] = "reader"
    password: Annotated[
        str | None,
        Meta(
            description="Reference to the door's password; without one only the loopback address may query.",
            extra={"reference": True},
        ),
    ] = None
    max_execution_s: Annotated[float, Meta(gt=0, description="How long one query may run.")] = 15.0
    max_result_rows: Annotated[int, Meta(ge=1, description="Rows that one query may return.")] = 1_000_000
    max_result_bytes: Annotated[int, Meta(ge=1024, description="Bytes that one query may return.")] = 256 * 1024 * 1024
    max_memory_bytes: Annotated[int, Meta(ge=1024 * 1024, description="Memory that one query may use.")] = (
        1024 * 1024 * 1024
    )
    concurrency: Annotated[int, Meta(ge=1, description="Queries that may run at once.")] = 4
    waiting_max: Annotated[int, Meta(ge=0, description="Queries that may wait for their turn; more are refused.")] = 64
    query_bytes_max: Annotated[
        int, Meta(ge=1024, le=1024 * 1024, description="Bytes that the text of one query may have.")
    ] = 256 * 1024
    body_timeout_s: Annotated[float, Meta(gt=0, description="How long a query's body may take to arrive.")] = 30.0


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the telemetry store as the control plane uses it."""

    readers: Annotated[int, Meta(ge=1, le=64, description="Queries of its own that may run at once.")] = 2
    waiting_max: Annotated[int, Meta(ge=1, description="Queries that may wait for one of those; more are refused.")] = (
        64
    )
    wait_s_max: Annotated[float, Meta(gt=0, description="How long a query may wait for its turn.")] = 30.0
    query_s_max: Annotated[float, Meta(gt=0, description="How long one query may run.")] = 30.0
    insert_s_max: Annotated[float, Meta(gt=0, description="How long one insert may run.")] = 60.0
    query_memory_bytes_max: Annotated[int, Meta(ge=16 * 1024 * 1024, description="Memory that one query may use.")] = (
        1024 * 1024 * 1024
    )
    memory_bytes_max: Annotated[
        int, Meta(ge=256 * 1024 * 1024, description="Memory that the embedded engine may use in all.")
    ] = 4 * 1024 * 1024 * 1024
    mark_cache_bytes: Annotated[
        int, Meta(ge=1024 * 1024, description="Memory that the embedded engine keeps for the marks of its files.")
    ] = 64 * 1024 * 1024


class DetectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How series are watched."""

    enabled: Annotated[bool, Meta(description="Whether series are watched at all.")] = True
    sweep_every_s: Annotated[float, Meta(gt=0, description="How often all watches are evaluated.")] = 5.0
    history_s: Annotated[float, Meta(gt=0, description="How far back a detector sees.")] = 3_600.0
    step_s: Annotated[float, Meta(gt=0, description="Width of one point of a series.")] = 5.0
    series_max: Annotated[
        int, Meta(ge=1, description="Series that one sweep evaluates; more are counted and left out.")
    ] = 2_000
    sweep_timeout_s: Annotated[float, Meta(gt=0, description="How long one sweep may take.")] = 30.0
    probe_every_s: Annotated[
        float, Meta(gt=0, description="How often deployments that are sick or drained are probed.")
    ] = 5.0
    probe_timeout_s: Annotated[float, Meta(gt=0, description="How long one probe may take before it failed.")] = 10.0
    probe_targets_max: Annotated[
        int, Meta(ge=1, description="Deployments that are probed at once; more are counted and left out.")
    ] = 20
    probe_ok_needed: Annotated[
        int, Meta(ge=1, description="Good probes in a row before a deployment counts as well.")
    ] = 3
    probe_failed_needed: Annotated[
        int, Meta(ge=1, description="Bad probes in a row before a deployment counts as sick.")
    ] = 2


class IncidentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When anomalies become an incident, and when it is over."""

    group_window_s: Annotated[
        float, Meta(gt=0, description="Anomalies this close in time may belong to one incident.")
    ] = 120.0
    resolve_after_s: Annotated[
        float, Meta(gt=0, description="An incident is over when nothing was anomalous for this long.")
    ] = 30.0
    pending_s: Annotated[float, Meta(ge=0, description="How long an anomaly lasts before its incident fires.")] = 0.0
    open_max: Annotated[
        int, Meta(ge=1, description="Incidents that may be open at once; more are counted and joined to the newest.")
    ] = 500


class HealingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done about incidents."""

    enabled: Annotated[
        bool, Meta(description="The kill switch: false stops every action and lets all leases expire.")
    ] = True
    shadow: Annotated[bool, Meta(description="Runs are decided and recorded, but nothing is changed.")] = False
    autonomy: Annotated[Autonomy, Meta(description="The most that any playbook may do by itself.")] = Autonomy.AUTO
    overrides: Annotated[dict[str, Autonomy], Meta(description="Autonomy of single playbooks, by their id.")] = {}
    playbooks: Annotated[
        dict[str, dict[str, str]],
        Meta(
            description="Values of playbooks to replace, by their id and their place below `spec`, such as `validate.bake`."
        ),
    ] = {}
    library: Annotated[str | None, Meta(description="Folder with playbooks of your own, beside the built-in ones.")] = (
        None
    )
    poll_every_s: Annotated[float, Meta(gt=0, description="How often the worker looks for runs to go on with.")] = 0.5
    runs_max: Annotated[int, Meta(ge=1, description="Runs that may be open at once.")] = 20
    leases_max: Annotated[int, Meta(ge=1, description="Overrides that may be in force at once.")] = 50

    @property
    def playbook_values(self) -> dict[str, dict[str, str | int]]:
        """The replaced values, with whole numbers as numbers."""
        return {
            name: {place: int(value) if value.isdecimal() else value for place, value in values.items()}
            for name, values in self.playbooks.items()
        }


class AlertSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How people are told; to whom is in the `alerts:` section."""

    timeout_s: Annotated[float, Meta(gt=0, description="How long one delivery may take.")] = 10.0
    attempts_max: Annotated[int, Meta(ge=1, description="Tries for one alert before it is given up and counted.")] = 12
    retry_s_max: Annotated[float, Meta(gt=0, description="Longest wait between two tries.")] = 300.0
    poll_every_s: Annotated[float, Meta(gt=0, description="How often the outbox is looked at.")] = 1.0


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the operator API."""

    body_bytes_max: Annotated[int, Meta(ge=1024, description="Largest body the operator API accepts.")] = 1024 * 1024
    page_rows_max: Annotated[int, Meta(ge=1, description="Rows that one page of an answer may have.")] = 1_000
    report_rows_max: Annotated[int, Meta(ge=1, description="Rows that one report may have.")] = 100_000
    shutdown_s: Annotated[float, Meta(ge=0, description="How long requests in flight get at shutdown.")] = 10.0


class ConsoleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The console's pages."""

    open_loopback: Annotated[
        bool, Meta(description="Whether the console's pages, not the API, need no token from this machine itself.")
    ] = False
    session_s: Annotated[int, Meta(ge=60, description="How long a login lasts.")] = 12 * 3600
    login_failures_per_minute_max: Annotated[
        int, Meta(ge=1, description="Failed logins that are answered in a minute; more must wait.")
    ] = 30
    poll_s: Annotated[float, Meta(ge=0.5, description="How often a page looks for news.")] = 2.0
    incidents_max: Annotated[int, Meta(ge=1, le=100, description="Incidents with timelines on the first page.")] = 10


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything under `server:`."""

    host: Annotated[str, Meta(min_length=1, description="Address the control plane listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port of the control plane; 0 takes a free one.")] = 4001
    proxy_host: Annotated[str, Meta(min_length=1, description="Address the proxy listens on.")] = "127.0.0.1"
    proxy_port: Annotated[int, Meta(ge=0, le=65_535, description="Port of the proxy; 0 takes a free one.")] = 4000
    workers: Annotated[
        int, Meta(ge=1, le=256, description="Proxy worker processes; they share the port and split the limits.")
    ] = 1
    data_dir: Annotated[
        str, Meta(min_length=1, description="Folder for everything that is kept; `${data_dir}` elsewhere means it.")
    ] = "./data"
    disk_free_bytes_min: Annotated[
        int, Meta(ge=0, description="The console and the log warn when the data folder's disk has less than this.")
    ] = 2 * 1024 * 1024 * 1024
    telemetry: Annotated[
        str,
        Meta(min_length=1, description="Telemetry store: `chdb:///path` or `clickhouse://user@host:8123/database`."),
    ] = f"chdb:///{DATA_DIR_VARIABLE}/telemetry"
    journal: Annotated[
        str, Meta(min_length=1, description="Journal: `sqlite:///path`. PostgreSQL is refused for now.")
    ] = f"sqlite:///{DATA_DIR_VARIABLE}/journal.db"
    journal_wait_s_max: Annotated[
        float, Meta(gt=0, description="How long an append may wait for another process that writes to the journal.")
    ] = 30.0
    journal_commands_days: Annotated[
        int, Meta(ge=1, description="Days in which a command that is sent twice is recognised as the same.")
    ] = 30
    redis: Annotated[
        str | None,
        Meta(
            description="Redis where workers and hosts share limits, stored answers and more: `redis://[user@]host:6379/0`, `rediss://...`, "
            "`unix:///path`, `redis+sentinel://...`, `redis+cluster://...`; null: none."
        ),
    ] = None
    redis_password: Annotated[
        str | None,
        Meta(description="Reference to Redis' password; null: it needs none.", extra={"reference": True}),
    ] = None
    telemetry_password: Annotated[
        str | None,
        Meta(
            description="Reference to the password of the ClickHouse server's user; null: it needs none.",
            extra={"reference": True},
        ),
    ] = None
    log: LogSettings = LogSettings()
    retention: RetentionSettings = RetentionSettings()
    ingest: IngestSettings = IngestSettings()
    publish: PublishSettings = PublishSettings()
    store: StoreSettings = StoreSettings()
    door: DoorSettings = DoorSettings()
    detection: DetectionSettings = DetectionSettings()
    incidents: IncidentSettings = IncidentSettings()
    healing: HealingSettings = HealingSettings()
    alerts: AlertSettings = AlertSettings()
    api: ApiSettings = ApiSettings()
    console: ConsoleSettings = ConsoleSettings()
    proxy: ProxySettings = ProxySettings()

    @property
    def data_path(self) -> Path:
        """The data folder."""
        return Path(self.data_dir)

    @property
    def control_plane_url(self) -> str:
        """Where a proxy on this machine finds the control plane."""
        return _url_of(self.host, self.port)

    @property
    def proxy_url(self) -> str:
        """Where this machine finds its proxy."""
        return _url_of(self.proxy_host, self.proxy_port)

    def resolved(self, base: Path | None = None) -> Settings:
        """The same with an absolute data folder and with `${data_dir}` filled in everywhere; safe to call twice.

        base: what a relative data folder is relative to; the working directory by default.
        """
        data_dir = str(((base or Path.cwd()) / Path(self.data_dir).expanduser()).resolve())

        def fill(text: str) -> str:
            return text.replace(DATA_DIR_VARIABLE, data_dir)

        return msgspec.structs.replace(
            self,
            data_dir=data_dir,
            telemetry=fill(self.telemetry),
            journal=fill(self.journal),
            log=msgspec.structs.replace(self.log, file=None if self.log.file is None else fill(self.log.file)),
            healing=msgspec.structs.replace(
                self.healing, library=None if self.healing.library is None else fill(self.healing.library)
            ),
        )

    def proxy_settings(self) -> ProxySettings:
        """What the proxy is started with: the `proxy:` bounds, with the places that `server:` itself decides."""
        return msgspec.structs.replace(
            self.proxy,
            host=self.proxy_host,
            port=self.proxy_port,
            workers=self.workers,
            data_dir=self.data_dir,
            control_plane_url=self.control_plane_url,
            redis=self.redis,
        )


def _url_of(host: str, port: int) -> str:
    """Where this machine finds what listens there."""
    host = "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Described(msgspec.Struct, frozen=True):
    """One setting as the reference shows it. path: keys from `server` down; the unit is in the name."""

    path: str
    type: str
    default: str
    sentence: str


def described() -> Iterator[Described]:
    """Every setting in the order of the file, for the reference and its test."""
    yield from _described(Settings, "server")


DECIDED_BY_SERVER = {
    "host": "proxy_host",
    "port": "proxy_port",
    "workers": "workers",
    "data_dir": "data_dir",
    "control_plane_url": "host",
    "redis": "redis",
}
"""Fields of `ProxySettings` that must not be set under `server.proxy`, with the setting that decides them."""

PROXY_SENTENCES = {
    "body_bytes_max": "Largest request body; a larger one is refused with 413.",
    "header_bytes_max": "Largest request head.",
    "body_timeout_s": "A client that sends its body slower than this is cut off.",
    "connections_max": "Client connections that one worker holds at once.",
    "tokens_remembered_max": "JSON Web Tokens whose signature a worker need not check again.",
    "trusted_proxies": "Networks of load balancers whose `x-forwarded-for` tells a client's address, for keys that are limited to some.",
    "keep_alive_s": "How long an idle client connection is kept.",
    "timeout_s_max": "Longest deadline that a route or a client may ask for.",
    "download_s_max": "Longest that a file or the results of a batch may take to come, while more of it comes within each `idle_timeout_s` of its upstream.",
    "reported_cost_ratio_max": "How many times our figure for a cost an upstream's own may be, or ours its, before it is counted as out of bounds.",
    "retry_ratio": "Asking an upstream again may be at most this share of the calls of the last ten seconds.",
    "retry_min_per_s": "Retries that are always allowed, so that a quiet proxy can retry at all.",
    "retry_after_s_max": "Longest `retry-after` of an upstream that is waited for.",
    "rest_s_max": "How long at most other calls ask a deployment last that has sent `retry-after`.",
    "retry_backoff_s": "Pause before the same deployment is asked again; it doubles with each try, and half of it is drawn.",
    "affinity_entries_max": "Conversations whose deployment a worker remembers.",
    "shadow_calls_max": "Copies of calls to shadows and sick deployments that run at once in a worker; more are left out.",
    "image_tokens_max": "Tokens reserved for each image of a request.",
    "sound_tokens_max": "Tokens reserved for each file with sound of a request.",
    "abandoned_tokens_per_s": "Assumed speed of an upstream whose call was cancelled, for the estimate.",
    "reply_bytes_max": "Largest reply that is read from an upstream.",
    "stream_event_bytes_max": "Largest single event of a stream.",
    "stream_hold_s_max": "How long the beginning of a stream, which holds no content, is held back so that another deployment may still answer.",
    "stream_buffer_bytes": "Reading from the upstream pauses when this much waits for a slow client.",
    "cache_memory_bytes": "Size of the memory tier of the cache.",
    "cache_disk_bytes": "Size of the disk tier of the cache.",
    "cache_repeats_bytes": "Bytes of requests that each worker knows word for word, so that it need not read them again; 0: none.",
    "coalesce_lease_s": "How soon other workers notice that the one which asks upstream for them has died.",
    "cache_refreshes_max": "Background calls for stale answers at any moment.",
    "cache_refresh_pause_s": "How long a stale answer is left alone after a background call for it failed.",
    "cache_entry_bytes_max": "Largest answer that is stored.",
    "coalesce_calls_max": "Calls that may wait on the flights of others.",
    "state_entries_max": "Responses, conversations and items whose owner is remembered on this host; the oldest give way, counted.",
    "state_bytes_max": "Size of the file of owners; above it the oldest give way, counted.",
    "state_ttl_s": "How long an owner is remembered after its thing was last asked for.",
    "state_wait_s": "Longest that a call waits to look an owner up, or to write one down.",
    "background_responses_max": "Responses in the background whose usage is still to be learned; the oldest are given up, counted.",
    "background_settle_s_max": "How long the usage of a response in the background is waited for.",
    "batch_settle_s_max": "How long a provider's batch may wait for its usage to be learned, from its making; then it is given up, counted.",
    "batch_lines_max": "Requests of one batch; more are refused.",
    "batch_line_bytes_max": "Longest line of a batch's results whose usage is read; a longer one is left out, counted, and the cost is an estimate.",
    "batch_list_pages_max": "Pages of 100 of an upstream's files or batches, which are all tenants', that are looked through for one page of one's own.",
    "background_look_every_s": "How soon a response in the background is looked at to learn its usage; later looks come less often.",
    "state_waiting_max": "Calls that may wait for the file of owners; more are told to come again.",
    "quota_instances_max": "Agents, keys, sessions... that one worker tells apart for one counter of a tenant; more share one instance.",
    "quota_fair_agents_max": "Agents of one tenant that a worker tells apart where it shares fairly; more share one part.",
    "hosts": "Machines among which limits are divided when there is no Redis, or when it does not answer.",
    "quota_idle_s": "An instance that was idle for longer may make room for another, and what it spent is forgotten.",
    "quota_status_max": "Instances of quotas that one worker tells the control plane about, the fullest first.",
    "quota_lease_s": "How long a worker may use a slice of a shared limit without a word from Redis.",
    "redis_timeout_s": "Longest that one command of Redis may take while a call waits for it.",
    "redis_connect_timeout_s": "How long connecting to Redis, or a write to it, may take; no call waits for either.",
    "redis_connections_max": "Connections to Redis of one worker; one of them is for writes.",
    "redis_waiting_max": "Commands that one worker may have under way in Redis; more are skipped and counted.",
    "redis_failures_max": "Commands in a row that came to nothing, after which Redis is left alone.",
    "redis_pause_s": "How long Redis is left alone before it is tried again.",
    "redis_entry_bytes_max": "Largest answer that is stored in Redis.",
    "redis_pending_bytes_max": "Answers that may wait to be written to Redis; more are dropped and counted.",
    "spool_bytes_max": "Size of the spool; when it is full, records are dropped and counted.",
    "segment_bytes": "A spool segment is closed at this size.",
    "segment_age_s": "A spool segment is closed at this age.",
    "ship_retry_s_max": "Longest wait between two tries to ship a segment.",
    "first_snapshot_wait_s": "At its very first start a worker waits so long for a snapshot before it takes connections; 0: not at all.",
    "snapshot_poll_s": "How long one poll for a newer snapshot waits.",
    "snapshot_retry_s_max": "Longest wait between two tries to reach the control plane.",
    "status_every_s": "How often a worker reports its status.",
    "linger_s": "How long an idle client connection may still be used while its worker is replaced.",
    "drain_s": "How long calls in flight get at shutdown.",
}
"""One sentence for each field of `ProxySettings` that `server.proxy` may set; the contract itself carries none."""


def _described(struct: type[msgspec.Struct], path: str) -> Iterator[Described]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        here, annotation = f"{path}.{field.encode_name}", hints[field.name]
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            yield from _described(annotation, here)
            continue
        if struct is ProxySettings:
            if field.name in DECIDED_BY_SERVER:
                continue
            sentence = PROXY_SENTENCES.get(field.name, "")
        else:
            sentence = next((m.description or "" for m in get_args(annotation)[1:] if isinstance(m, Meta)), "")
        default = {} if field.default is msgspec.NODEFAULT else field.default
        yield Described(
            path=here, type=_type_name(annotation), default=msgspec.json.encode(default).decode(), sentence=sentence
        )


def _type_name(annotation: object) -> str:
    """How the reference calls a type."""
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if isinstance(annotation, type):
        if issubclass(annotation, StrEnum):
            return " | ".join(f"`{member.value}`" for member in annotation)
        return {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}.get(
            annotation, annotation.__name__
        )
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(arguments[0])}"
    if get_origin(annotation) is dict:
        return f"mapping of text to {_type_name(arguments[1])}"
    return " or ".join(_type_name(argument) for argument in arguments) + " or null"
