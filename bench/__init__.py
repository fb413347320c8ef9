"""Benchmarks: `python -m bench.<name>`; docs/performance.md has the results."""
