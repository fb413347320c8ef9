"""Programs to try the gateway with."""
