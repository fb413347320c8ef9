"""What keeps payloads from the bus: sealed envelopes, and channels that count."""
