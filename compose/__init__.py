"""Stacks that are ready to run: on one machine, and in containers."""
