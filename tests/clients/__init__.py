"""Clients that people point at the proxy, used as their makers say and otherwise unchanged."""
