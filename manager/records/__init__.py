"""Session records on the bus: sealed, changed by compare-and-set, with an outbox each."""
