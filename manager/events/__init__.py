"""What a worker tells people of its own work: events on the bus, and counts."""
