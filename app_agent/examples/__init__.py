"""Example programs to try the gateway with."""
