"""SGX DCAP quotes and Intel's collateral."""
