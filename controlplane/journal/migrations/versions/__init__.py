"""One file per change; forward only."""
