"""The application agent: runs in an enclave, proves where it is, and passes the gateway with its own key."""
