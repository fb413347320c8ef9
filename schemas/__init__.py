"""The models of everything that crosses a boundary; nothing here does network I/O."""
