"""A simulated SGX machine: its CPU and quoting enclave as a daemon, the authority that certifies it, and its PCCS."""
