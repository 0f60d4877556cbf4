-- What of a cost is not for tokens: searches, containers, pictures and the like, how many and how much of the cost each kind makes.

ALTER TABLE calls
    ADD COLUMN IF NOT EXISTS items Map(LowCardinality(String), Decimal(18, 6)) AFTER price_version,
    ADD COLUMN IF NOT EXISTS items_usd Map(LowCardinality(String), Decimal(18, 9)) AFTER items;

ALTER TABLE attempts
    ADD COLUMN IF NOT EXISTS items Map(LowCardinality(String), Decimal(18, 6)) AFTER price_version,
    ADD COLUMN IF NOT EXISTS items_usd Map(LowCardinality(String), Decimal(18, 9)) AFTER items;
