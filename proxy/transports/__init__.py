"""Transports wait: asynchronous, nested, without policy."""
