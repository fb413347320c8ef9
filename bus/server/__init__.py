"""nats-server as a child process: one, or a cluster of three."""
