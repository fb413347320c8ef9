"""The stack on one machine, as child processes."""
