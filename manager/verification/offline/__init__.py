"""The same verifiers on files, for `attestgate verify`."""
