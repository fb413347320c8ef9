"""What a worker does with a message: a table of handlers by role and step."""
