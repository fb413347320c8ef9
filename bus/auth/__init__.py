"""Who may do what on the bus: credentials, and the one table of permissions."""
