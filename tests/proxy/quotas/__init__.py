"""Tests of the quota machine."""
