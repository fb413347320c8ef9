"""What keeps payloads secret from the bus: sealed envelopes, and channels with counters."""
