"""The SQL of the Overview board, on the telemetry tables of the store.

Names of tables and columns are those of docs/reference/data-model.md; a test compares them with the store's schema and runs every statement.
Macros are those of Grafana's ClickHouse data source.
"""

from __future__ import annotations

FAILED = "('exhausted', 'timed_out', 'unavailable', 'broken_stream', 'internal')"
"""Outcomes that we or an upstream owe the client; what else is not `ok` is the client's own doing."""

FROM_CACHE = "('hit', 'stale', 'semantic', 'coalesced')"

_TENANT = "$__conditionalAll(tenant IN (${tenant:singlequote}), $tenant)"
_DEPLOYMENT = "$__conditionalAll(deployment IN (${deployment:singlequote}), $deployment)"
_CALLS = f"FROM calls_minute WHERE $__timeFilter(minute) AND {_TENANT} AND {_DEPLOYMENT}"
# Without probes and copies, for which nobody waits.
_ASKED_FOR = f"{_CALLS} AND NOT (tenant = '' AND agent = 'hephaestus')"
_ATTEMPTS = f"FROM attempts_minute WHERE $__timeFilter(minute) AND {_DEPLOYMENT}"
_TIME = "SELECT $__timeInterval(minute) AS time"
_RANGE_S = "greatest(1, toUnixTimestamp($__toTime) - toUnixTimestamp($__fromTime))"

_SUCCEEDED_OR_FAILED = f"sumIf(calls, outcome = 'ok' OR outcome IN {FAILED})"
_ERROR_SHARE = f"sumIf(calls, outcome IN {FAILED}) / nullIf({_SUCCEEDED_OR_FAILED}, 0)"
_HIT_RATIO = f"sumIf(calls, cache IN {FROM_CACHE}) / nullIf(sumIf(calls, cache != 'bypass'), 0)"
_MERGED = "quantilesTDigestMerge(0.5, 0.95, 0.99)"
_LAST_STATES = """(
  SELECT incident_id, min(at) AS opened, argMax(state, position) AS state, argMax(severity, position) AS severity,
    argMaxIf(title, position, title != '') AS title, argMaxIf(deployment, position, deployment != '') AS deployment
  FROM incident_events GROUP BY incident_id
)"""


def _p95(column: str) -> str:
    """The 95th percentile in seconds, from the roll-up's digests."""
    return f"{_MERGED}({column})[2] / 1e6"


def _quantiles(column: str) -> str:
    """Median, 95th and 99th percentile in seconds, one column each; the engine merges the digests once."""
    return ", ".join(
        f"{_MERGED}({column})[{place}] / 1e6 AS {name}" for place, name in ((1, "p50"), (2, "p95"), (3, "p99"))
    )


# One number each, over the shown range.

REQUESTS_PER_S = f"SELECT sum(calls) / {_RANGE_S} AS requests {_ASKED_FOR}"
ERROR_SHARE = f"SELECT {_ERROR_SHARE} AS errors {_ASKED_FOR}"
LATENCY_P95 = f"SELECT {_p95('latency_us')} AS p95 {_ASKED_FOR} AND outcome = 'ok'"
FIRST_TOKEN_P95 = f"SELECT {_p95('first_token_us')} AS p95 {_ASKED_FOR} AND outcome = 'ok'"
COST_PER_HOUR = f"SELECT toFloat64(sum(cost_usd)) * 3600 / {_RANGE_S} AS cost {_CALLS}"
HIT_RATIO = f"SELECT {_HIT_RATIO} AS hits {_ASKED_FOR}"
OPEN_INCIDENTS = f"SELECT countIf(state != 'resolved') AS open FROM {_LAST_STATES}"  # noqa: S608
OPEN_BREAKERS = f"""SELECT uniqExactIf(deployment, state != 'closed') AS open FROM (
  SELECT proxy, deployment, argMax(state, at) AS state FROM deployment_status
  WHERE at > now64(6) - INTERVAL 1 MINUTE AND {_DEPLOYMENT} GROUP BY proxy, deployment
)"""  # noqa: S608 - made of constants

# Lines over time: the time, at most one label, then numbers.

REQUESTS_BY_OUTCOME = f"{_TIME}, outcome, sum(calls) / $__interval_s AS requests {_ASKED_FOR} GROUP BY time, outcome ORDER BY time, outcome"
ERRORS_BY_ALIAS = (
    f"{_TIME}, alias, {_ERROR_SHARE} AS errors {_ASKED_FOR} AND alias != '' GROUP BY time, alias ORDER BY time, alias"
)
LATENCY = f"""{_TIME}, {_quantiles("latency_us")}
{_ASKED_FOR} AND outcome = 'ok' GROUP BY time ORDER BY time"""
FIRST_TOKEN = f"""{_TIME}, {_quantiles("first_token_us")}
{_ASKED_FOR} AND outcome = 'ok' GROUP BY time ORDER BY time"""
TOKENS = f"""{_TIME}, sum(tokens_input) / $__interval_s AS input, sum(tokens_cache_read) / $__interval_s AS "cache read",
  sum(tokens_cache_write + tokens_cache_write_1h) / $__interval_s AS "cache write", sum(tokens_output) / $__interval_s AS output,
  sum(tokens_reasoning) / $__interval_s AS reasoning, sum(tokens_audio_input + tokens_audio_output) / $__interval_s AS audio
{_CALLS} GROUP BY time ORDER BY time"""
COST_BY_TENANT = f"""{_TIME}, tenant, toFloat64(sum(cost_usd)) * 3600 / $__interval_s AS cost
{_CALLS} AND tenant != '' GROUP BY time, tenant ORDER BY time, tenant"""
HITS = f"{_TIME}, {_HIT_RATIO} AS hits {_ASKED_FOR} GROUP BY time ORDER BY time"
SAVED_PER_HOUR = (
    f"{_TIME}, toFloat64(sum(saved_usd)) * 3600 / $__interval_s AS saved {_CALLS} GROUP BY time ORDER BY time"
)
ATTEMPT_ERRORS = f"""{_TIME}, deployment, sumIf(attempts, error NOT IN ('', 'rejected', 'cancelled')) / nullIf(sum(attempts), 0) AS failed
{_ATTEMPTS} GROUP BY time, deployment ORDER BY time, deployment"""
FIRST_TOKEN_BY_DEPLOYMENT = f"""{_TIME}, deployment, {_p95("first_token_us")} AS p95
{_ATTEMPTS} AND error = '' GROUP BY time, deployment ORDER BY time, deployment"""
BREAKER_STATES = f"""SELECT $__timeInterval(at) AS time, deployment, max(multiIf(state = 'open', 2, state = 'half_open', 1, 0)) AS state
FROM deployment_status WHERE $__timeFilter(at) AND {_DEPLOYMENT} GROUP BY time, deployment ORDER BY time, deployment"""  # noqa: S608
LEASES = """SELECT $__timeInterval(at) AS time, proxy, max(length(leases)) AS leases
FROM proxy_status WHERE $__timeFilter(at) GROUP BY time, proxy ORDER BY time, proxy"""

# Tables.

INCIDENTS = f"""SELECT opened, title, state, severity, deployment, incident_id
FROM {_LAST_STATES} WHERE state != 'resolved' OR $__timeFilter(opened) ORDER BY state = 'resolved', opened DESC LIMIT 50"""  # noqa: S608
AGENTS = f"""SELECT agent, sum(calls) AS requests, {_ERROR_SHARE} AS errors, {_HIT_RATIO} AS hits,
  {_p95("latency_us")} AS p95, toFloat64(sum(cost_usd)) AS cost, toFloat64(sum(saved_usd)) AS saved
{_CALLS} GROUP BY agent ORDER BY cost DESC, requests DESC LIMIT 20"""
ALIASES = f"""SELECT alias, sum(calls) AS requests, {_ERROR_SHARE} AS errors, {_p95("latency_us")} AS p95,
  {_p95("first_token_us")} AS first_token_p95, sum(calls_unpriced) AS unpriced, toFloat64(sum(cost_usd)) AS cost
{_CALLS} AND alias != '' GROUP BY alias ORDER BY cost DESC, requests DESC LIMIT 20"""

# Variables and annotations.

TENANT_VALUES = "SELECT DISTINCT tenant FROM calls_minute WHERE $__timeFilter(minute) AND tenant != '' ORDER BY tenant"
DEPLOYMENT_VALUES = "SELECT DISTINCT deployment FROM attempts_minute WHERE $__timeFilter(minute) ORDER BY deployment"
INCIDENT_MARKS = """SELECT at AS time, concat(replaceOne(type, 'incident.', 'incident '), ': ', title) AS text, severity AS tags
FROM incident_events WHERE $__timeFilter(at) AND type IN ('incident.fired', 'incident.resolved', 'incident.reopened') ORDER BY time LIMIT 200"""
RUN_MARKS = """SELECT at AS time, concat(playbook, ': ', replaceOne(type, 'run.', 'run ')) AS text, state AS tags
FROM run_events WHERE $__timeFilter(at) AND startsWith(type, 'run.') ORDER BY time LIMIT 200"""
