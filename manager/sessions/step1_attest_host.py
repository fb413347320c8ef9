"""Step 1: the manager starts remote attestation of the host's enclave.

hello -> challenge. The challenge is signed, names the hello that it answers, and lists the wanted evidence, which
follows from the enrolment alone, never from the hello.
"""

from __future__ import annotations

from pydantic import JsonValue

from attestgate.bus.crypto.envelope import SuiteName
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.handshake import open_session
from attestgate.manager.sessions.record import HostRecord
from attestgate.schemas.messages import EvidenceKind, HostHello


def challenge_host(
    session: str, hello: HostHello, hello_bytes: bytes, context: Context, suite: SuiteName, wanted: list[EvidenceKind]
) -> HostRecord:
    """The record of a new host session, its challenge in the outbox."""
    shown: dict[str, JsonValue] = {"wanted": list(wanted), "agent_version": hello.agent_version}
    return open_session(HostRecord, session, hello.host, hello.host, hello_bytes, context, suite, wanted, shown)
