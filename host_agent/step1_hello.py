"""Step 1, the host's side: ask to be attested."""

from __future__ import annotations

from pathlib import Path
from secrets import token_bytes

from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.messages import EvidenceKind, HostHello

AGENT_VERSION = "attestgate-host/1"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def hello(host: str, can_give: list[EvidenceKind]) -> HostHello:
    """A hello with a fresh random value, so that no older challenge answers it."""
    try:
        # For people only: nothing is decided by it.
        boot_id = BOOT_ID.read_text(encoding="ascii").strip()[:64]
    except OSError:
        boot_id = ""
    return HostHello(
        version=PROTOCOL,
        host=host,
        random=token_bytes(32),
        boot_id=boot_id,
        agent_version=AGENT_VERSION,
        can_give=can_give,
    )
