"""Session records on the bus: encrypted, changed by compare-and-set, with an outbox each."""
