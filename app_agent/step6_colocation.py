"""Step 6, the application's side: read the key that the host's enclave put into the volume, and prove it.

Only an enclave on this platform unseals it, and only the quoted instance decrypts what is inside. The file is removed
after use for tidiness; the protection is the two layers.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from attestgate.bus.agent.link import AgentSession
from attestgate.enclave.api import Enclave
from attestgate.enclave.sealing import unseal
from attestgate.schemas.base import Refusal, Secret, read_at_most, unpack
from attestgate.schemas.binding import canonical, colocation_proof
from attestgate.schemas.messages import AppGrant, VolumeKey

PURPOSE = "application key"
MAX_KEY_FILE = 16 * 1024


async def prove_colocation(session: AgentSession, enclave: Enclave, volume: Path, patience_s: float) -> None:
    """Wait for n2, read the key, send the HMAC. Raises SessionOver, or Refusal if the key is not available."""
    grant = await session.take_grant(AppGrant, patience_s)
    k_app = read_key(session, enclave, volume / f"{session.session}.key")
    await session.prove(colocation_proof(k_app, grant.n2, session.transcript), grant.channel)


def read_key(session: AgentSession, enclave: Enclave, path: Path) -> Secret:
    """K_app from its file in the volume. Raises Refusal (`volume.*`, `seal.*`, `envelope.*`)."""
    try:
        blob = read_at_most(path, MAX_KEY_FILE)
    except OSError as error:
        raise Refusal.because(
            "volume.read",
            str(path),
            expected="the key that the host's agent put there",
            found=error.strerror or type(error).__name__,
            action="mount the same data volume in the container and at the host's agent, under the enrolled index",
        ) from None
    key = unpack(VolumeKey, unseal(enclave, "mrsigner", PURPOSE, blob), limit=MAX_KEY_FILE)
    # T2 covers this session's evidence: a key file of an earlier session, put back, does not open.
    info = canonical("volume key", session.session, session.t2)
    k_app = Secret(session.open_for_me(info, key.ciphertext))
    with suppress(OSError):  # the folder may be writable for the host only
        path.unlink()
    return k_app
