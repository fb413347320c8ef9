"""The two session machines: pure functions of a record, an input and the time."""
