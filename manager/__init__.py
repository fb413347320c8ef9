"""The manager, the verifier of RFC 9334: appraises evidence, grants and withdraws trust."""
