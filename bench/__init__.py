"""Benchmarks: `pytest --benchmark-only`."""
