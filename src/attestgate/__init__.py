"""attestgate: remote attestation in front of an SDN controller."""
