"""All that is remembered about calls; the only code that opens ClickHouse."""
