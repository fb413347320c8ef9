"""What a worker counts, and where Prometheus reads it."""
