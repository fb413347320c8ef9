"""TPM 2.0 quotes, keys and enrolment."""
