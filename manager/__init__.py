"""The manager: judges evidence, grants and withdraws trust."""
