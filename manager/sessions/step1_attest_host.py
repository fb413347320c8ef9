"""Step 1: the manager starts remote attestation of the host's enclave.

hello -> challenge. The challenge is signed, names the hello that it answers, and says what evidence is wanted from
the enrolment record and the policy, never from the hello.
"""

from __future__ import annotations

from attestgate.bus.crypto.envelope import SuiteName
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.handshake import fresh_handshake
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.states import Input, State
from attestgate.schemas.messages import EvidenceKind, HostHello


def challenge_host(
    session: str, hello: HostHello, hello_bytes: bytes, context: Context, suite: SuiteName, wanted: list[EvidenceKind]
) -> HostRecord:
    """The record of a new host session, its challenge in the outbox."""
    handshake, challenge = fresh_handshake("host", session, hello.host, hello_bytes, context, suite, wanted)
    record = HostRecord(
        session=session,
        subject=hello.host,
        host=hello.host,
        state=State.NEW,
        suite=suite,
        wanted=wanted,
        created_at=context.now,
        issued_at=context.now,
        deadline=handshake.window_end + context.timing.skew_s,
        handshake=handshake,
    )
    draft = Draft(record, context)
    draft.move(Input.HELLO)
    draft.send("challenge", challenge)
    draft.event("challenged", wanted=list(wanted), agent_version=hello.agent_version)
    return draft.finish()
