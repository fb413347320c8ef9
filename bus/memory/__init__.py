"""The bus in memory, with the real one's promises, for tests."""
