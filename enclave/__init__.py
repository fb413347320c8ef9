"""The platform an agent runs on: one interface, with Gramine on SGX hardware and a simulated platform behind it."""
