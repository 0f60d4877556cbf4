"""The only place where components are made, joined, started and stopped."""
