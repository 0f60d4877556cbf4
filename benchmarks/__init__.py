"""Benchmarks that anyone can run: `make bench`. Results are files under benchmarks/results/."""
