"""Tests of the simulated batches."""
