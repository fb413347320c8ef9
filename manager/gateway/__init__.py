"""The gateway worker: makes nginx hold exactly what the managers' signed leases say."""
