-- Minute roll-ups. The views run within the insert of the facts and share its deduplication token.
-- Priced, estimated and unpriced calls are counted apart: an unpriced call is not a free one.

CREATE TABLE IF NOT EXISTS calls_minute
(
    minute DateTime('UTC') CODEC(Delta, ZSTD(1)),
    tenant LowCardinality(String),
    agent LowCardinality(String),
    operation LowCardinality(String),
    alias LowCardinality(String),
    model LowCardinality(String),
    deployment LowCardinality(String),
    outcome LowCardinality(String),
    cache LowCardinality(String),
    calls SimpleAggregateFunction(sum, UInt64),
    calls_priced SimpleAggregateFunction(sum, UInt64),
    calls_estimated SimpleAggregateFunction(sum, UInt64),
    calls_unpriced SimpleAggregateFunction(sum, UInt64),
    tokens_input SimpleAggregateFunction(sum, UInt64),
    tokens_cache_read SimpleAggregateFunction(sum, UInt64),
    tokens_cache_write SimpleAggregateFunction(sum, UInt64),
    tokens_cache_write_1h SimpleAggregateFunction(sum, UInt64),
    tokens_output SimpleAggregateFunction(sum, UInt64),
    tokens_reasoning SimpleAggregateFunction(sum, UInt64),
    tokens_audio_input SimpleAggregateFunction(sum, UInt64),
    tokens_audio_output SimpleAggregateFunction(sum, UInt64),
    cost_usd SimpleAggregateFunction(sum, Decimal(38, 9)),
    saved_usd SimpleAggregateFunction(sum, Decimal(38, 9)),
    attempts SimpleAggregateFunction(sum, UInt64),
    overhead_us SimpleAggregateFunction(sum, UInt64),
    request_bytes SimpleAggregateFunction(sum, UInt64),
    response_bytes SimpleAggregateFunction(sum, UInt64),
    latency_us AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    first_token_us AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, tenant, agent, operation, alias, model, deployment, outcome, cache)
TTL toDate(minute) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS calls_minute_view TO calls_minute AS
SELECT
    toStartOfMinute(started) AS minute,
    tenant,
    agent,
    operation,
    alias,
    model,
    deployment,
    outcome,
    cache,
    count() AS calls,
    countIf(cost_state = 'final') AS calls_priced,
    countIf(cost_state = 'estimated') AS calls_estimated,
    countIf(cost_state = 'unpriced') AS calls_unpriced,
    sum(fact.tokens_input) AS tokens_input,
    sum(fact.tokens_cache_read) AS tokens_cache_read,
    sum(fact.tokens_cache_write) AS tokens_cache_write,
    sum(fact.tokens_cache_write_1h) AS tokens_cache_write_1h,
    sum(fact.tokens_output) AS tokens_output,
    sum(fact.tokens_reasoning) AS tokens_reasoning,
    sum(fact.tokens_audio_input) AS tokens_audio_input,
    sum(fact.tokens_audio_output) AS tokens_audio_output,
    sum(fact.cost_usd) AS cost_usd,
    sum(fact.saved_usd) AS saved_usd,
    sum(fact.attempts) AS attempts,
    sum(fact.overhead_us) AS overhead_us,
    sum(fact.request_bytes) AS request_bytes,
    sum(fact.response_bytes) AS response_bytes,
    quantilesTDigestState(0.5, 0.95, 0.99)(fact.latency_us) AS latency_us,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(fact.first_token_us, fact.first_token_us > 0) AS first_token_us
FROM calls AS fact
GROUP BY minute, tenant, agent, operation, alias, model, deployment, outcome, cache;

CREATE TABLE IF NOT EXISTS attempts_minute
(
    minute DateTime('UTC') CODEC(Delta, ZSTD(1)),
    deployment LowCardinality(String),
    upstream LowCardinality(String),
    model LowCardinality(String),
    alias LowCardinality(String),
    error LowCardinality(String),
    attempts SimpleAggregateFunction(sum, UInt64),
    probes SimpleAggregateFunction(sum, UInt64),
    tokens_input SimpleAggregateFunction(sum, UInt64),
    tokens_cache_read SimpleAggregateFunction(sum, UInt64),
    tokens_cache_write SimpleAggregateFunction(sum, UInt64),
    tokens_cache_write_1h SimpleAggregateFunction(sum, UInt64),
    tokens_output SimpleAggregateFunction(sum, UInt64),
    tokens_reasoning SimpleAggregateFunction(sum, UInt64),
    tokens_audio_input SimpleAggregateFunction(sum, UInt64),
    tokens_audio_output SimpleAggregateFunction(sum, UInt64),
    cost_usd SimpleAggregateFunction(sum, Decimal(38, 9)),
    latency_us AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    first_token_us AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, deployment, upstream, model, alias, error)
TTL toDate(minute) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS attempts_minute_view TO attempts_minute AS
SELECT
    toStartOfMinute(started) AS minute,
    deployment,
    upstream,
    model,
    alias,
    error,
    count() AS attempts,
    countIf(probe) AS probes,
    sum(fact.tokens_input) AS tokens_input,
    sum(fact.tokens_cache_read) AS tokens_cache_read,
    sum(fact.tokens_cache_write) AS tokens_cache_write,
    sum(fact.tokens_cache_write_1h) AS tokens_cache_write_1h,
    sum(fact.tokens_output) AS tokens_output,
    sum(fact.tokens_reasoning) AS tokens_reasoning,
    sum(fact.tokens_audio_input) AS tokens_audio_input,
    sum(fact.tokens_audio_output) AS tokens_audio_output,
    sum(fact.cost_usd) AS cost_usd,
    quantilesTDigestState(0.5, 0.95, 0.99)(fact.latency_us) AS latency_us,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(fact.first_token_us, fact.first_token_us > 0) AS first_token_us
FROM attempts AS fact
GROUP BY minute, deployment, upstream, model, alias, error;
