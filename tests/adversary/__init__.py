"""docs/threats.md, row by row, against the real parts: what each adversary has in hand, and what it must not reach."""
