"""An enclave of the application's code and signer that tries to open a key sealed for another instance.

Run as `python -m attestgate.app_agent.examples.thief KEY_FILE`: it prints which of the two layers opens.
"""

from __future__ import annotations

import sys
from pathlib import Path

from attestgate.app_agent.step6_colocation import PURPOSE
from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.envelope import SUITES
from attestgate.enclave.providers.choice import open_enclave
from attestgate.enclave.sealing import unseal
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.binding import canonical
from attestgate.schemas.messages import VolumeKey


def main(path: Path) -> int:
    """Exit code 0: the inner layer was refused."""
    enclave = open_enclave("simulated", "development")
    key = unpack(VolumeKey, unseal(enclave, "mrsigner", PURPOSE, path.read_bytes()))
    sys.stdout.write(f"outer layer: opened, {len(key.ciphertext)} bytes inside\n")
    private, _ = envelope.generate(SUITES[0])
    try:
        envelope.open_sealed(SUITES[0], private, canonical("volume key", key.app_session, bytes(64)), key.ciphertext)
    except Refusal as refusal:
        sys.stdout.write(f"inner layer: refused: {refusal}\n")
        return 0
    sys.stdout.write("inner layer: opened\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
