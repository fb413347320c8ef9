"""A real SDN controller for the demo: os-ken with a small northbound API. Optional: see requirements-sdn.lock."""
