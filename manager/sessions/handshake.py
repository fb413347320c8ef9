"""What both handshakes share: the challenge, opening evidence, the grant, the proof in the transcript.

T0 -> T1 (challenge) -> T2 (evidence) -> T3 (grant) -> T4 (proof). Only accepted messages enter the transcript.
"""

from __future__ import annotations

from pydantic import BaseModel, JsonValue

from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.channel import Channel, Frame, open_frame
from attestgate.bus.crypto.envelope import SuiteName
from attestgate.bus.subjects import app_name
from attestgate.manager.sessions.appraisal import Affirmed, AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft, R
from attestgate.manager.sessions.rank import next_rank
from attestgate.manager.sessions.record import ROLE, Handshake
from attestgate.manager.sessions.states import Input, State
from attestgate.manager.sessions.termination import terminate
from attestgate.schemas.base import Refusal, Secret, pack, unpack
from attestgate.schemas.binding import (
    PROOF_STEP,
    Role,
    canonical,
    digest,
    enclave_key_hash,
    first_transcript,
    hello_hash,
    next_transcript,
)
from attestgate.schemas.messages import (
    CHALLENGE,
    GRANT,
    REJECTED,
    Challenge,
    EvidenceKind,
    Proof,
    Rejected,
    Sealed,
    to_agent,
)

MAX_VERIFICATIONS = 8
"""Appraisals of foreign evidence per session; after that it waits for its deadline. An appraisal costs far more than
encrypting to a public challenge."""


def session_id(role: Role, subject: str, hello: bytes) -> str:
    """The id of the session that a hello opens, derived from it: a repeated delivery finds the session it opened."""
    return digest("session id", role, subject, hello)[:16].hex()


def fresh_handshake(
    role: Role,
    session: str,
    subject: str,
    name: str,
    hello: bytes,
    context: Context,
    suite: SuiteName,
    wanted: list[EvidenceKind],
) -> tuple[Handshake, bytes]:
    """The manager's side of a handshake at T1, and the signed challenge's bytes. `name` is the agent's on the bus."""
    private, public = envelope.generate(suite)
    challenge = Challenge(
        session=session,
        role=role,
        hello=hello_hash(hello),
        nonce=context.token(32),
        issued_at=context.now,
        expires_at=context.now + context.timing.evidence_window_s,
        session_key=public,
        suite=suite,
        wanted=wanted,
    )
    data = pack(context.identity.sign(CHALLENGE, to_agent(role, name), challenge))
    t0 = first_transcript(suite, role, session, subject, context.identity.public)
    handshake = Handshake(
        hello=challenge.hello,
        nonce=challenge.nonce,
        window_end=challenge.expires_at,
        session_private=private,
        transcript=next_transcript(t0, "down", "challenge", data),
    )
    return handshake, data


def open_session(
    kind: type[R],
    session: str,
    subject: str,
    host: str,
    hello: bytes,
    context: Context,
    suite: SuiteName,
    wanted: list[EvidenceKind],
    shown: dict[str, JsonValue],
) -> R:
    """The record of a new session, its challenge in the outbox; `shown` is what the event reports of the hello."""
    role = ROLE[kind]
    name = subject if role == "host" else app_name(host, subject)
    handshake, challenge = fresh_handshake(role, session, subject, name, hello, context, suite, wanted)
    record = kind(
        session=session,
        subject=subject,
        host=host,
        state=State.NEW,
        suite=suite,
        wanted=wanted,
        created_at=context.now,
        issued_at=context.now,
        deadline=handshake.window_end + context.timing.skew_s,
        rank=next_rank(context.now_us, context.known_rank),
        handshake=handshake,
    )
    draft = Draft(record, context)
    draft.move(Input.HELLO)
    draft.send("challenge", challenge)
    draft.event("challenged", **shown)
    return draft.finish()


def open_evidence(handshake: Handshake, session: str, suite: SuiteName, data: bytes, context: Context) -> bytes:
    """The plaintext of an evidence message. Raises Refusal if it is late, of another session, or does not decrypt."""
    if context.now > handshake.window_end + context.timing.skew_s:
        raise Refusal.because(
            "evidence.late",
            "evidence",
            expected=f"by {handshake.window_end}",
            found=f"{context.now}",
            action="send a new hello: the challenge has expired",
        )
    if handshake.verifications >= MAX_VERIFICATIONS:
        raise Refusal.because(
            "evidence.cap",
            "evidence",
            expected=f"at most {MAX_VERIFICATIONS} rejected pieces of evidence per session",
            found=f"{handshake.verifications} already rejected",
            action="wait for the session's deadline; find out who else uses this subject's credential",
        )
    sealed = unpack(Sealed, data)
    if sealed.session != session:
        raise Refusal.because(
            "evidence.session", "session", expected=session, found=sealed.session, action="answer the newest challenge"
        )
    info = canonical("evidence encryption", handshake.transcript)
    return envelope.open_sealed(suite, handshake.session_private, info, sealed.ciphertext)


def accept_evidence(draft: Draft[R], data: bytes, enclave_key: bytes) -> bytes:
    """Move T1 to T2 over accepted evidence, whose quote names the key; it acknowledges the challenge. Returns T2."""
    handshake = _handshake(draft)
    t2 = next_transcript(handshake.transcript, "up", "evidence", data)
    following = handshake.model_copy(update={"transcript": t2, "t2": t2, "enclave_key": enclave_key})
    draft.set(handshake=following, enclave_key_hash=enclave_key_hash(enclave_key), unacknowledged=[])
    return t2


def settle_evidence(draft: Draft[R], data: bytes, result: AppraisalResult) -> Affirmed | None:
    """First evidence that is good, with which the handshake goes on. Otherwise the draft holds the consequences.

    Bad evidence of the subject's own ends the session. Evidence that anyone could have sent does not: the challenge is
    public, and anyone can encrypt to it. Raises InvalidTransition.
    """
    if result.given is Input.EVIDENCE_FOREIGN:
        _count_foreign_evidence(draft, data, result)
        return None
    draft.set(outcome=result.outcome, platform=result.platform, basis=result.basis)
    if result.given is Input.EVIDENCE_BAD:
        terminate(draft, Input.EVIDENCE_BAD, "evidence", result.reasons, result)
        return None
    return result.affirmed


def _count_foreign_evidence(draft: Draft[R], data: bytes, result: AppraisalResult) -> None:
    """Evidence that anyone could have sent: the session goes on, the attempt is counted, the sender is notified."""
    handshake = _handshake(draft)
    draft.move(Input.EVIDENCE_FOREIGN)
    draft.set(handshake=handshake.model_copy(update={"verifications": handshake.verifications + 1}))
    notice = Rejected(
        session=draft.record.session, evidence=digest("rejected evidence", data), reasons=list(result.reasons)
    )
    draft.say_signed(REJECTED, notice)
    reasons: list[JsonValue] = [reason.model_dump() for reason in result.reasons]
    draft.event("evidence-rejected", step="evidence", reasons=reasons, **draft.ear(result))


def grant(draft: Draft[R], model: BaseModel, channel_secret: Secret, challenge_nonce: bytes) -> None:
    """Encrypt the grant to the enclave's key, sign it, move T2 to T3."""
    handshake, record = _handshake(draft), draft.record
    t2 = handshake.transcript
    ciphertext = envelope.seal(record.suite, handshake.enclave_key, canonical("grant encryption", t2), pack(model))
    sealed = Sealed(session=record.session, ciphertext=ciphertext)
    data = pack(draft.context.identity.sign(GRANT, to_agent(record.role, record.name), sealed, t2))
    draft.set(
        handshake=handshake.model_copy(
            update={
                "transcript": next_transcript(t2, "down", "grant", data),
                "channel_secret": channel_secret,
                "challenge_nonce": challenge_nonce,
            }
        )
    )
    draft.send("grant", data)


def open_proof(handshake: Handshake, role: Role, session: str, data: bytes) -> bytes:
    """The 64-byte proof. Raises Refusal for bytes that do not decrypt under T3."""
    if handshake.channel_secret is None:
        raise Refusal.because(
            "proof.early", "proof", expected="a proof after the grant", found="a proof before it", action="wait"
        )
    t3 = handshake.transcript
    frame = unpack(Frame, data)
    if frame.counter != 0:
        raise Refusal.because(
            "proof.counter",
            "counter",
            expected="0 (the channel starts after the proof)",
            found=frame.counter,
            action="run the agent in the manager's version",
        )
    plaintext = open_frame(
        frame, session, handshake.channel_secret, PROOF_STEP[role], base=t3, direction="up", chain=t3
    )
    return unpack(Proof, plaintext).proof


def open_channel(draft: Draft[R], proof_message: bytes) -> None:
    """T4, and with it the channel; the handshake's secrets are dropped."""
    handshake = _handshake(draft)
    if handshake.channel_secret is None:
        raise AssertionError("a proof was accepted before a grant")
    t4 = next_transcript(handshake.transcript, "up", PROOF_STEP[draft.record.role], proof_message)
    channel = Channel.start(draft.record.session, handshake.channel_secret, t4, "down")
    draft.set(handshake=None, channel=channel, unacknowledged=[])


def _handshake(draft: Draft[R]) -> Handshake:
    if draft.record.handshake is None:
        raise AssertionError(f"no handshake under way in {draft.record.state}")
    return draft.record.handshake
