"""The certificate authorities, and the certificates that applications get."""
