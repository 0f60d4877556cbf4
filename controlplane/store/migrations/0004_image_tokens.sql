-- Image tokens, as models that draw report them: two more kinds in the facts and in their roll-ups.

ALTER TABLE calls
    ADD COLUMN IF NOT EXISTS tokens_image_input UInt64 CODEC(T64, ZSTD(1)) AFTER tokens_audio_output,
    ADD COLUMN IF NOT EXISTS tokens_image_output UInt64 CODEC(T64, ZSTD(1)) AFTER tokens_image_input;

ALTER TABLE attempts
    ADD COLUMN IF NOT EXISTS tokens_image_input UInt64 CODEC(T64, ZSTD(1)) AFTER tokens_audio_output,
    ADD COLUMN IF NOT EXISTS tokens_image_output UInt64 CODEC(T64, ZSTD(1)) AFTER tokens_image_input;

ALTER TABLE calls_minute
    ADD COLUMN IF NOT EXISTS tokens_image_input SimpleAggregateFunction(sum, UInt64) AFTER tokens_audio_output,
    ADD COLUMN IF NOT EXISTS tokens_image_output SimpleAggregateFunction(sum, UInt64) AFTER tokens_image_input;

ALTER TABLE attempts_minute
    ADD COLUMN IF NOT EXISTS tokens_image_input SimpleAggregateFunction(sum, UInt64) AFTER tokens_audio_output,
    ADD COLUMN IF NOT EXISTS tokens_image_output SimpleAggregateFunction(sum, UInt64) AFTER tokens_image_input;

-- A view's query is replaced as one step: nothing that is inserted meanwhile is left out or counted twice.

ALTER TABLE calls_minute_view MODIFY QUERY
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
    sum(fact.tokens_image_input) AS tokens_image_input,
    sum(fact.tokens_image_output) AS tokens_image_output,
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

ALTER TABLE attempts_minute_view MODIFY QUERY
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
    sum(fact.tokens_image_input) AS tokens_image_input,
    sum(fact.tokens_image_output) AS tokens_image_output,
    sum(fact.cost_usd) AS cost_usd,
    quantilesTDigestState(0.5, 0.95, 0.99)(fact.latency_us) AS latency_us,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(fact.first_token_us, fact.first_token_us > 0) AS first_token_us
FROM attempts AS fact
GROUP BY minute, deployment, upstream, model, alias, error;
