"""Step 6, the host's side: deliver the application's key into its data volume, sealed twice.

The outer layer unseals only on this platform, for code of the same signer; the inner one only in the one enclave
instance that the manager has a quote of. A copied file, a sibling or a second instance gets nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.envelope import SUITES
from attestgate.enclave.api import Enclave
from attestgate.enclave.sealing import seal
from attestgate.schemas.base import Reason, Refusal, Secret, pack
from attestgate.schemas.binding import application_key, canonical
from attestgate.schemas.messages import DeliverKey, KeyDelivered, VolumeKey

PURPOSE = "application key"


def volume_file(volume: Path, app_session: str) -> Path:
    """Where an application session's key lies in its volume. A hexadecimal id cannot lead out of the folder."""
    return volume / f"{app_session}.key"


def deliver(enclave: Enclave, k: Secret, volumes: list[Path], order: DeliverKey) -> KeyDelivered:
    """Put the key of one application session into the volume that the order names by index."""
    try:
        _deliver(enclave, k, volumes, order)
    except Refusal as refusal:
        return KeyDelivered(app_session=order.app_session, problem=refusal.reasons[0])
    except OSError as error:
        problem = Reason(
            code="host.volume",
            field=f"volume {order.volume}",
            expected="a data volume that the host's agent can write",
            found=error.strerror or type(error).__name__,
            action="mount the volume, and give the agent's user write permission",
        )
        return KeyDelivered(app_session=order.app_session, problem=problem)
    return KeyDelivered(app_session=order.app_session)


def _deliver(enclave: Enclave, k: Secret, volumes: list[Path], order: DeliverKey) -> None:
    if order.volume >= len(volumes) or order.suite not in SUITES:
        raise Refusal.because(
            "host.volume",
            f"volume {order.volume}",
            expected=f"an index below {len(volumes)} in the host's own table of volumes",
            found=str(order.volume),
            action="enrol the application with the right index, or add the volume to the host's settings",
        )
    info = canonical("volume key", order.app_session, order.t2)
    k_app = application_key(k, order.app_session, order.t2)
    ciphertext = envelope.seal(order.suite, order.enclave_key, info, k_app.reveal())
    inner = pack(VolumeKey(app_session=order.app_session, ciphertext=ciphertext))
    _write(volume_file(volumes[order.volume], order.app_session), seal(enclave, "mrsigner", PURPOSE, inner))


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)  # the volume is the application's too: never write through a link it put there
    # Readable by all: it is sealed twice, and the application's user is not this one's.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    new.replace(path)
