"""The proxy's settings: what the operator writes under `server.proxy` and the CLI hands to each worker at start.

Every bound of the data plane is here, with its unit in its name. A change needs a restart. Each field is documented in
docs/reference/settings.md, which a test compares with this file.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ProxySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Bounds and places of one proxy worker."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 4000
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    hosts: Annotated[int, Meta(ge=1, le=10_000)] = 1  # machines that share limits, for when they cannot ask each other
    data_dir: str = "./data"
    control_plane_url: str = "http://127.0.0.1:4001"

    # requests
    body_bytes_max: int = 32 * 1024 * 1024  # what Anthropic takes; OpenAI's longest sound file is 25 MB
    header_bytes_max: int = 64 * 1024
    body_timeout_s: float = 30.0  # a client that sends its body slower than this is cut off
    connections_max: int = 12_000
    tokens_remembered_max: Annotated[int, Meta(ge=1)] = (
        10_000  # JSON Web Tokens whose signature need not be checked again
    )
    trusted_proxies: tuple[str, ...] = ()  # networks of load balancers whose `x-forwarded-for` is believed
    keep_alive_s: float = 75.0

    # calls
    timeout_s_max: float = 600.0
    download_s_max: Annotated[float, Meta(gt=0)] = (
        21_600.0  # of a file or a batch's results, as long as more of it comes
    )
    retry_ratio: float = 0.2  # retries may be at most this share of calls, over the last ten seconds
    retry_min_per_s: float = 3.0  # and at least this many, so that a quiet proxy can retry at all
    retry_after_s_max: float = 5.0  # wait for an upstream's `retry-after` only up to this
    rest_s_max: float = 60.0  # a deployment that sent `retry-after` is asked last by other calls for so long at most
    retry_backoff_s: float = 0.05  # pause before the same deployment is asked again; doubles with each try
    affinity_entries_max: int = 10_000  # conversations whose deployment a worker remembers
    shadow_calls_max: int = 20  # copies of calls that run at once; more are left out
    image_tokens_max: int = 2_000  # reserved for each image of a request
    sound_tokens_max: int = 16_000  # reserved for each file with sound: as much as a transcribing model takes in
    reported_cost_ratio_max: Annotated[float, Meta(ge=1)] = (
        2.0  # an upstream's own figure for a cost may be so many times ours, or ours its
    )
    abandoned_tokens_per_s: float = 100.0  # assumed speed of an upstream whose call was cancelled, for the estimate

    # quotas
    quota_instances_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000  # agents, sessions... of one counter
    quota_fair_agents_max: Annotated[int, Meta(ge=1, le=10_000)] = 100  # told apart where a tenant shares fairly
    quota_idle_s: Annotated[float, Meta(gt=0)] = 86_400.0  # an instance idle for longer may make room for another
    quota_lease_s: Annotated[float, Meta(ge=0.5, le=300)] = (
        10.0  # of a slice of a limit that workers share through Redis
    )
    quota_status_max: Annotated[int, Meta(ge=0, le=10_000)] = 500  # instances told to the control plane, fullest first

    # replies
    reply_bytes_max: int = 64 * 1024 * 1024
    stream_event_bytes_max: int = 16 * 1024 * 1024  # a picture of high quality is one event
    stream_hold_s_max: Annotated[float, Meta(ge=0)] = 10.0  # how long pings wait for the first content
    stream_buffer_bytes: int = 256 * 1024  # back-pressure: reading from the upstream pauses above this

    # cache
    cache_memory_bytes: int = 128 * 1024 * 1024
    cache_disk_bytes: int = 1024 * 1024 * 1024
    cache_entry_bytes_max: int = 4 * 1024 * 1024
    cache_repeats_bytes: Annotated[int, Meta(ge=0)] = 16 * 1024 * 1024
    cache_refreshes_max: Annotated[int, Meta(ge=1)] = 64  # background calls for stale answers at any moment
    cache_refresh_pause_s: Annotated[float, Meta(ge=0)] = 5.0  # an answer is left alone so long after one that failed
    coalesce_lease_s: Annotated[float, Meta(ge=0.2, le=60)] = 3.0  # how soon other workers notice that a leader died
    coalesce_calls_max: int = 10_000  # calls that may wait on others' flights

    # whose the responses and conversations are that upstreams keep
    state_entries_max: Annotated[int, Meta(ge=16)] = 2_000_000
    state_bytes_max: Annotated[int, Meta(ge=1024 * 1024)] = 512 * 1024 * 1024
    state_ttl_s: Annotated[float, Meta(gt=0)] = 30 * 86_400.0  # without being asked for
    state_wait_s: Annotated[float, Meta(gt=0, le=60)] = (
        2.0  # a call waits no longer than this to learn or to write whose
    )
    state_waiting_max: Annotated[int, Meta(ge=1)] = 1024  # calls that wait for that at any moment
    background_responses_max: Annotated[int, Meta(ge=1)] = 10_000  # whose usage is still to be learned
    background_settle_s_max: Annotated[float, Meta(gt=0)] = 86_400.0  # after which that is given up
    background_look_every_s: Annotated[float, Meta(gt=0)] = 5.0  # how soon a new one is looked at
    batch_settle_s_max: Annotated[float, Meta(gt=0)] = 7 * 86_400.0  # after which learning what it used is given up
    batch_lines_max: Annotated[int, Meta(ge=1)] = 100_000  # requests of one batch
    batch_line_bytes_max: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024  # of its results, when they are booked
    batch_list_pages_max: Annotated[int, Meta(ge=1)] = 20  # of an upstream's list, for one of a tenant

    # the cache's third tier, shared by workers and hosts
    redis: str | None = None  # see `controlplane.contract.redis_address`; its password comes in the environment
    redis_timeout_s: Annotated[float, Meta(gt=0, le=10)] = (
        0.02  # a call waits no longer than this, connections included
    )
    redis_connect_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 1.0  # nobody waits for it; of a write, too
    redis_connections_max: Annotated[int, Meta(ge=2, le=64)] = 3  # one writes, the others read
    redis_waiting_max: Annotated[int, Meta(ge=1)] = 256  # look-ups at any moment
    redis_failures_max: Annotated[int, Meta(ge=1)] = 3  # in a row, before Redis is left alone
    redis_pause_s: Annotated[float, Meta(gt=0)] = 5.0  # before it is tried again
    redis_entry_bytes_max: Annotated[int, Meta(ge=1024, le=512 * 1024 * 1024)] = 1024 * 1024
    redis_pending_bytes_max: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024  # entries that wait to be written

    # spool
    spool_bytes_max: int = 4 * 1024 * 1024 * 1024
    segment_bytes: int = 1024 * 1024
    segment_age_s: float = 1.0
    ship_retry_s_max: float = 15.0

    # control plane
    snapshot_poll_s: float = 25.0
    first_snapshot_wait_s: Annotated[float, Meta(ge=0)] = 5.0
    snapshot_retry_s_max: float = 5.0
    status_every_s: float = 2.0
    drain_s: float = 20.0  # at shutdown, calls in flight get this long
    linger_s: float = 1.0  # of a worker that is replaced, an idle connection may still be used this long
