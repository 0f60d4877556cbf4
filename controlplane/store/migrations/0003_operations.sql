-- What the proxies say about themselves, copies of journal events, and the list of stored batches.

CREATE TABLE IF NOT EXISTS deployment_status
(
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    proxy LowCardinality(String),
    deployment LowCardinality(String),
    state LowCardinality(String),
    since DateTime64(6, 'UTC'),
    reason String,
    error_ratio Float64,
    calls UInt64,
    snapshot_version UInt64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (deployment, at, proxy)
TTL toDate(at) + INTERVAL 90 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS proxy_status
(
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    proxy LowCardinality(String),
    snapshot_version UInt64,
    leases Array(String),
    calls_inflight UInt64,
    calls_total UInt64,
    ledger_calls UInt64,
    ledger_usd Decimal(38, 9),
    spool_bytes UInt64,
    spool_dropped UInt64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (proxy, at)
TTL toDate(at) + INTERVAL 90 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- Copies of journal events may be written twice after a crash; the engine keeps one of each position.
CREATE TABLE IF NOT EXISTS incident_events
(
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    position UInt64,
    incident_id String,
    type LowCardinality(String),
    state LowCardinality(String),
    severity LowCardinality(String),
    title String,
    deployment LowCardinality(String),
    data String CODEC(ZSTD(3))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (incident_id, position)
TTL toDate(at) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS run_events
(
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    position UInt64,
    run_id String,
    incident_id String,
    playbook LowCardinality(String),
    type LowCardinality(String),
    state LowCardinality(String),
    step LowCardinality(String),
    data String CODEC(ZSTD(3))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (run_id, position)
TTL toDate(at) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- Read by token before anything is stored; kept long after any proxy would send a segment again.
CREATE TABLE IF NOT EXISTS batches
(
    token String CODEC(ZSTD(1)),
    proxy LowCardinality(String),
    records UInt32,
    attempts UInt32,
    payloads UInt32,
    bytes UInt64,
    cost_usd Decimal(38, 9),
    first DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    last DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    ingested DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ingested)
ORDER BY token
TTL toDate(ingested) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
