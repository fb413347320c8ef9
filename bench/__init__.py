"""Measurements: `python -m bench.<name>`; docs/performance.md has what they said."""
