"""What crosses a boundary, and nothing that does I/O."""
