"""The bus in memory, with the real one's guarantees, for tests."""
