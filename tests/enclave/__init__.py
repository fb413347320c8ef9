"""Tests of the platform an agent runs on, and of the simulated one."""
