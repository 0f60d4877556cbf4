"""Which series are watched, by which detector, how often."""
