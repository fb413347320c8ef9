"""Verifiers: pure functions of evidence, reference values and the time. No I/O."""
