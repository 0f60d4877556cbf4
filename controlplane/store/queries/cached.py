"""How many stored answers an invalidation would take, told from the calls that brought them."""

from __future__ import annotations

import msgspec

from controlplane.store.client import Store, Value

# What a proxy stores was a miss that ended well, or a stale answer asked anew behind a call. Some of these answers were never kept (too
# large, filtered), and some are gone already (evicted, invalidated, asked for by two workers), so the numbers are at most what is there.
_COUNT = """
SELECT count() AS entries, sum(response_bytes) AS bytes FROM calls
WHERE (cache = 'miss' OR (cache = 'bypass' AND channel = 'cache-refresh')) AND outcome = 'ok' AND status = 200
    AND started >= fromUnixTimestamp64Micro({from_us:Int64}, 'UTC') AND started < fromUnixTimestamp64Micro({before_us:Int64}, 'UTC')
    AND ({tenant:String} = '' OR tenant = {tenant:String}) AND ({alias:String} = '' OR alias = {alias:String})
    AND ({model:String} = '' OR model = {model:String}) AND ({agent:String} = '' OR agent = {agent:String})
    AND ({tag_name:String} = '' OR (mapContains(tags, {tag_name:String})
        AND (NOT {tag_has_value:Bool} OR tags[{tag_name:String}] = {tag_value:String})))
"""


class Cached(msgspec.Struct, frozen=True):
    """Stored answers, at most so many."""

    entries: int
    bytes: int


def count_cached(
    store: Store, *, from_us: int, before_us: int, tenant: str, tag: str, alias: str, model: str, agent: str
) -> Cached:
    """Answers that were asked for in a span of time and fit every selector that is not empty; blocking."""
    name, equals, value = tag.partition("=")
    parameters: dict[str, Value] = {
        "from_us": from_us,
        "before_us": before_us,
        "tenant": tenant,
        "alias": alias,
        "model": model,
        "agent": agent,
        "tag_name": name,
        "tag_has_value": bool(equals),
        "tag_value": value,
    }
    return store.structs(Cached, _COUNT, parameters)[0]
