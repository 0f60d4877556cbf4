-- What an upstream itself says that an answer costs: compared with our own figure, never billed.

ALTER TABLE attempts
    ADD COLUMN IF NOT EXISTS reported_usd Nullable(Decimal(18, 9)) CODEC(ZSTD(1)) AFTER probe;
