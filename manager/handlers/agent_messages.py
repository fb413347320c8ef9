"""Messages from agents to their sessions: each is decrypted with the record's keys, and a step takes its content.

Evidence is appraised in between. A message that does not fit raises Refusal or InvalidTransition before the record has
changed.
"""

from __future__ import annotations

from collections.abc import Callable

from attestgate.bus.crypto.channel import Channel, Frame
from attestgate.manager.attestation.verifier import Verifier
from attestgate.manager.handlers.large_messages import LargeMessages
from attestgate.manager.local.slices import aside
from attestgate.manager.policy.enrolments import Enrolments, check_not_held
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.issuance import Certificates
from attestgate.manager.records.ranks import Ranks
from attestgate.manager.records.session_store import R, SessionStore
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.handshake import open_evidence
from attestgate.manager.sessions.recheck import (
    late_answer,
    take_application_recheck,
    take_host_recheck,
    unjudged_answer,
)
from attestgate.manager.sessions.record import AppRecord, HostRecord, current_key
from attestgate.manager.sessions.states import Input, InvalidTransition, State
from attestgate.manager.sessions.step3_judge_host import take_host_evidence
from attestgate.manager.sessions.step4_host_key import take_host_proof
from attestgate.manager.sessions.step5_attest_application import take_application_evidence
from attestgate.manager.sessions.step6_colocation import take_colocation_proof, take_delivered
from attestgate.manager.sessions.step7_certificate import renewal_due
from attestgate.manager.sessions.trusted_host import TrustedHost, trusted
from attestgate.schemas.admission import spiffe_id
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.messages import (
    AppEvidence,
    AppRecheckEvidence,
    HostEvidence,
    HostRecheckEvidence,
    KeyDelivered,
    Resume,
)


class AgentMessages:
    """Steps from a record, the sender's id and a message's bytes to the next record.

    Raise Refusal, InvalidTransition, BusError. Each takes a new context after every wait: deadlines count
    from when the step is taken.
    """

    def __init__(
        self,
        store: SessionStore,
        current: CurrentSessions,
        ranks: Ranks,
        enrolments: Enrolments,
        verifier: Verifier,
        context: Callable[[], Context],
        trust_domain: str,
        certificates: Certificates,
    ) -> None:
        self._store = store
        self._current = current
        self._ranks = ranks
        self._enrolments = enrolments
        self._verifier = verifier
        self._context = context
        self._trust_domain = trust_domain
        self._certificates = certificates
        self._large = LargeMessages()

    async def host_evidence(self, record: HostRecord, id: str, data: bytes) -> HostRecord:
        """First evidence of a host: step 3."""
        async with self._large.room(id, len(data)):
            context = self._context()
            evidence = unpack(HostEvidence, await aside(len(data), _open_first, record, id, data, context))
            result = await self._verifier.host(record, evidence, context.now)
            return await aside(len(data), take_host_evidence, record, self._context(), data, evidence, result)

    async def host_proof(self, record: HostRecord, id: str, data: bytes) -> HostRecord:
        """The host's HMAC over n1: step 4."""
        _owned(record, id)
        newer = await self._ranks.newer(record)
        check_not_held(record.subject, record.basis.enrolled if record.basis else 0, await self._current.held(id))
        await self._enrolments.check_still("host", record.subject, record.basis)
        return take_host_proof(record, self._context(), data, newer)

    async def host_recheck(self, record: HostRecord, id: str, data: bytes) -> HostRecord:
        """A host's answer to a recheck's challenge."""
        return await self._host_recheck(record, id, "recheck_evidence", data)

    async def host_recheck_list(self, record: HostRecord, id: str, data: bytes) -> HostRecord:
        """An answer with a large piece of the measurement list: taken only while it is waited for."""
        _owned(record, id)
        if record.question is None:
            if record.channel is not None:
                record.channel.check_next(unpack(Frame, data), data)
            raise InvalidTransition(record.state, Input.EVIDENCE_GOOD)
        return await self._host_recheck(record, id, "recheck_list", data)

    async def _host_recheck(self, record: HostRecord, id: str, step: str, data: bytes) -> HostRecord:
        async with self._large.room(id, len(data)):
            channel, plaintext = await aside(len(data), _open, record, id, step, data)
            context, evidence = self._context(), unpack(HostRecheckEvidence, plaintext)
            if _late(record, evidence.nonce, context):
                return late_answer(record, context, channel)
            try:
                result = await self._verifier.host_recheck(record, evidence, context.now)
                if not result.reasons:
                    await self._enrolments.check_still("host", record.subject, result.basis)
            except Refusal as refusal:
                return unjudged_answer(record, self._context(), channel, refusal)
            return take_host_recheck(record, self._context(), channel, result)

    async def key_delivered(self, record: HostRecord, id: str, data: bytes) -> HostRecord:
        """The host has written an application's key to its volume, or could not: step 6."""
        channel, plaintext = _open(record, id, "key_delivered", data)
        return take_delivered(record, self._context(), channel, unpack(KeyDelivered, plaintext))

    async def app_evidence(self, record: AppRecord, id: str, data: bytes) -> AppRecord:
        """First evidence of an application: step 5."""
        context = self._context()
        evidence = unpack(AppEvidence, _open_first(record, id, data, context))
        enrolled = await self._enrolments.app(record.subject)
        host = await self._host_of(record, context)
        result = await self._verifier.app(record, evidence, host, enrolled, context.now)
        return take_application_evidence(
            record,
            self._context(),
            data,
            evidence,
            result,
            host=host,
            volume=enrolled.subject.volume(record.host) or 0,
        )

    async def colocation_proof(self, record: AppRecord, id: str, data: bytes) -> AppRecord:
        """The application's HMAC over n2: step 6."""
        _owned(record, id)
        host = await trusted_host(self._store, record, self._context())
        return take_colocation_proof(record, self._context(), data, host)

    async def app_recheck(self, record: AppRecord, id: str, data: bytes) -> AppRecord:
        """An application's answer to a recheck's challenge, and the next certificate if it is time to renew."""
        channel, plaintext = _open(record, id, "recheck_evidence", data)
        context, evidence = self._context(), unpack(AppRecheckEvidence, plaintext)
        if _late(record, evidence.nonce, context):
            return late_answer(record, context, channel)
        host = await trusted_host(self._store, record, context)
        try:
            enrolled = await self._enrolments.app(record.subject)
            result = await self._verifier.app_recheck(record, evidence, host, enrolled, context.now)
            if not result.reasons:
                await self._enrolments.check_still("app", record.subject, result.basis)
        except Refusal as refusal:
            return unjudged_answer(record, self._context(), channel, refusal)
        identity = spiffe_id(self._trust_domain, record.host, record.subject)
        due = not result.reasons and renewal_due(record, context)
        judged = record.model_copy(update={"outcome": result.outcome})
        issued = self._certificates.issue(judged, enrolled.subject) if due else None
        return take_application_recheck(record, self._context(), channel, result, identity, host, enrolled, issued)

    async def resume(self, kind: type[R], id: str, data: bytes) -> None:
        """Resend to an agent what it has not acknowledged."""
        session = unpack(Resume, data).session
        _owned(await self._store.load(kind, session), id)
        await self._store.resend(kind, session)

    async def _host_of(self, record: AppRecord, context: Context) -> TrustedHost | None:
        """The trusted session of the application's host, or None."""
        session = await self._current.session(current_key("host", record.host, record.host))
        if session is None:
            return None
        return trusted(await self._store.load(HostRecord, session), context.now, context.timing.skew_s)


async def trusted_host(store: SessionStore, record: AppRecord, context: Context) -> TrustedHost:
    """The host that an application session depends on, loaded now. Raises InvalidTransition unless it is trusted."""
    if record.host_session is None:
        raise InvalidTransition(record.state, Input.HOST_LOST)
    host = trusted(await store.load(HostRecord, record.host_session), context.now, context.timing.skew_s)
    if host is None:
        raise InvalidTransition(record.state, Input.HOST_LOST)
    return host


def _owned(record: HostRecord | AppRecord, id: str) -> None:
    # The server lets a credential publish on its own subjects only (bus/auth/permissions.py), so `id` is the sender's.
    if record.name != id:
        raise Refusal.because(
            "message.owner",
            "session",
            expected=f"a session of {id}",
            found=f"a session of {record.name}",
            action="find out who uses this credential",
        )


def _open_first(record: HostRecord | AppRecord, id: str, data: bytes, context: Context) -> bytes:
    _owned(record, id)
    if record.state is not State.CHALLENGED or record.handshake is None:
        raise InvalidTransition(record.state, Input.EVIDENCE_GOOD)
    return open_evidence(record.handshake, record.session, record.suite, data, context)


def _open(record: HostRecord | AppRecord, id: str, step: str, data: bytes) -> tuple[Channel, bytes]:
    """Open a channel message; also returns the channel's next state, with what the peer has acknowledged."""
    _owned(record, id)
    if record.over or record.channel is None:
        raise InvalidTransition(record.state, Input.EVIDENCE_GOOD)
    return record.channel.open(step, data)


def _late(record: HostRecord | AppRecord, nonce: bytes, context: Context) -> bool:
    """Whether an answer is to a challenge that is no longer open."""
    question = record.question
    if question is None or question.nonce != nonce:
        return True
    return context.now > question.window_end + context.timing.skew_s
