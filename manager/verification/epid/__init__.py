"""EPID quotes, and the legacy attestation service's reports of them."""
