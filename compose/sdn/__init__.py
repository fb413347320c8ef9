"""A real SDN controller for the demo: os-ken with a small northbound. Optional: see requirements-sdn.lock."""
