"""Step 2 and the verdict: evidence is appraised with what the attestation services say. Network clients are here."""
