"""The bus by nats-py: connections, streams, buckets, and what can be asked of the server."""
