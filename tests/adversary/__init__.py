"""What a stolen bus credential has in hand, against the real parts, and what it must not reach."""
