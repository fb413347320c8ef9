"""The platforms that an agent runs on, and the one that its settings choose."""
