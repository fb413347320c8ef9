"""The gateway worker: makes nginx hold just what the managers' signed leases say."""
