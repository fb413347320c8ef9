"""The Remote Host: it runs in an enclave on the host, gives evidence, keeps K, hands keys to applications."""
