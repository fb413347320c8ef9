"""The Application's side: it runs in an enclave, proves where it is, and goes through the gateway with its own key."""
