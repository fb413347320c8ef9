"""The decision log: every decision that grants or takes away trust, in a Merkle tree that only grows."""
