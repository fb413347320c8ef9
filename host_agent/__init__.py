"""The host agent (Remote Host): runs in an enclave on the host, gives evidence, keeps K, delivers application keys."""
