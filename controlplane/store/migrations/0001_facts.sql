-- The facts: calls, their attempts and payloads. Every row is written once and never changed.
-- `non_replicated_deduplication_window` makes an insert under a known token change nothing, in these tables and in the roll-ups.

CREATE TABLE IF NOT EXISTS calls
(
    call_id String CODEC(ZSTD(1)),
    started DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    latency_us UInt64 CODEC(T64, ZSTD(1)),
    operation LowCardinality(String),
    outcome LowCardinality(String),
    status UInt16,
    tenant LowCardinality(String),
    key_id LowCardinality(String),
    agent LowCardinality(String),
    session String CODEC(ZSTD(1)),
    user String CODEC(ZSTD(1)),
    tags Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    channel LowCardinality(String),
    priority LowCardinality(String),
    trace_id String CODEC(ZSTD(1)),
    alias LowCardinality(String),
    model LowCardinality(String),
    deployment LowCardinality(String),
    stream Bool,
    first_token_us UInt64 CODEC(T64, ZSTD(1)),
    overhead_us UInt64 CODEC(T64, ZSTD(1)),
    error_code LowCardinality(String),
    finish_reason LowCardinality(String),
    cache LowCardinality(String),
    tokens_input UInt64 CODEC(T64, ZSTD(1)),
    tokens_cache_read UInt64 CODEC(T64, ZSTD(1)),
    tokens_cache_write UInt64 CODEC(T64, ZSTD(1)),
    tokens_cache_write_1h UInt64 CODEC(T64, ZSTD(1)),
    tokens_output UInt64 CODEC(T64, ZSTD(1)),
    tokens_reasoning UInt64 CODEC(T64, ZSTD(1)),
    tokens_audio_input UInt64 CODEC(T64, ZSTD(1)),
    tokens_audio_output UInt64 CODEC(T64, ZSTD(1)),
    cost_usd Decimal(18, 9) CODEC(ZSTD(1)),
    cost_state LowCardinality(String),
    saved_usd Decimal(18, 9) CODEC(ZSTD(1)),
    price_version LowCardinality(String),
    snapshot_version UInt64 CODEC(T64, ZSTD(1)),
    request_bytes UInt64 CODEC(T64, ZSTD(1)),
    response_bytes UInt64 CODEC(T64, ZSTD(1)),
    attempts UInt16,
    proxy LowCardinality(String),
    ingested DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1)),
    INDEX by_call_id call_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_session session TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(started)
ORDER BY (tenant, toStartOfHour(started), alias, call_id)
TTL toDate(started) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS attempts
(
    call_id String CODEC(ZSTD(1)),
    attempt UInt16,
    started DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    latency_us UInt64 CODEC(T64, ZSTD(1)),
    first_token_us UInt64 CODEC(T64, ZSTD(1)),
    tenant LowCardinality(String),
    agent LowCardinality(String),
    alias LowCardinality(String),
    operation LowCardinality(String),
    deployment LowCardinality(String),
    upstream LowCardinality(String),
    model LowCardinality(String),
    status UInt16,
    error LowCardinality(String),
    tokens_input UInt64 CODEC(T64, ZSTD(1)),
    tokens_cache_read UInt64 CODEC(T64, ZSTD(1)),
    tokens_cache_write UInt64 CODEC(T64, ZSTD(1)),
    tokens_cache_write_1h UInt64 CODEC(T64, ZSTD(1)),
    tokens_output UInt64 CODEC(T64, ZSTD(1)),
    tokens_reasoning UInt64 CODEC(T64, ZSTD(1)),
    tokens_audio_input UInt64 CODEC(T64, ZSTD(1)),
    tokens_audio_output UInt64 CODEC(T64, ZSTD(1)),
    cost_usd Decimal(18, 9) CODEC(ZSTD(1)),
    cost_state LowCardinality(String),
    price_version LowCardinality(String),
    probe Bool,
    proxy LowCardinality(String),
    ingested DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1)),
    INDEX by_call_id call_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(started)
ORDER BY (deployment, toStartOfMinute(started), call_id, attempt)
TTL toDate(started) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- Partitions are by day and retention, so that an expired payload goes by dropping a whole part.
CREATE TABLE IF NOT EXISTS payloads
(
    call_id String CODEC(ZSTD(1)),
    started DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    tenant LowCardinality(String),
    request String CODEC(ZSTD(3)),
    response String CODEC(ZSTD(3)),
    retention_days UInt16,
    ingested DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1)),
    INDEX by_call_id call_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY (toDate(started), retention_days)
ORDER BY (tenant, toStartOfHour(started), call_id)
TTL toDate(started) + toIntervalDay(retention_days) DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
