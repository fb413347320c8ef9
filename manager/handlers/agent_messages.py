"""What agents and gateways say, step by step: which function takes which message.

Each handler opens the message with the record's secrets, has it judged where it holds evidence, and gives the answer
to the pure step. Anything that does not fit raises Refusal or NoMove before the record has changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from attestgate.bus import subjects
from attestgate.bus.api import Bus
from attestgate.bus.crypto.channel import Channel, Frame
from attestgate.bus.crypto.envelope import SuiteName
from attestgate.manager.attestation.verifier import NO_PLACEMENT, Judge
from attestgate.manager.audit.orders import Orders
from attestgate.manager.handlers.hello import HelloDesk
from attestgate.manager.policy.registry import Registry
from attestgate.manager.records.issuance import Certificates
from attestgate.manager.records.outbox import Outbox
from attestgate.manager.records.session_store import SessionStore
from attestgate.manager.sessions.draft import Context, Judgement
from attestgate.manager.sessions.handshake import open_evidence
from attestgate.manager.sessions.recheck import late_answer, take_application_recheck, unjudged_answer
from attestgate.manager.sessions.record import AppRecord, HostRecord, current_key
from attestgate.manager.sessions.states import Input, NoMove, State
from attestgate.manager.sessions.step3_judge_host import take_host_evidence, take_host_recheck
from attestgate.manager.sessions.step4_host_key import take_host_proof
from attestgate.manager.sessions.step5_attest_application import take_application_evidence
from attestgate.manager.sessions.step6_colocation import take_colocation_proof, take_delivered
from attestgate.manager.sessions.step7_certificate import renewal_due
from attestgate.manager.sessions.work import Applied
from attestgate.schemas.admission import open_report, spiffe_id
from attestgate.schemas.base import Reason, Refusal, unpack
from attestgate.schemas.messages import (
    AppEvidence,
    AppRecheckEvidence,
    HostEvidence,
    HostRecheckEvidence,
    KeyDelivered,
    Outcome,
    Resume,
    Sealed,
)

R = TypeVar("R", HostRecord, AppRecord)
Handler = Callable[[str, bytes], Awaitable[None]]


class Inbound:
    """Takes messages of `attest.v1.in.<role>.<id>.<step>`."""

    def __init__(
        self,
        bus: Bus,
        store: SessionStore,
        outbox: Outbox,
        registry: Registry,
        judge: Judge,
        context: Callable[[], Context],
        suite: SuiteName,
        trust_domain: str,
        certificates: Certificates,
        orders: Orders,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._registry = registry
        self._judge = judge
        self._context = context
        self._trust_domain = trust_domain
        self._certificates = certificates
        self._orders = orders
        hello = HelloDesk(bus, store, outbox, registry, context, suite)
        self._handlers: dict[tuple[str, str], Handler] = {
            ("host", "hello"): hello.host,
            ("host", "evidence"): self._host_evidence,
            ("host", "key_proof"): self._host_proof,
            ("host", "recheck_evidence"): self._host_recheck,
            ("host", "key_delivered"): self._key_delivered,
            ("host", "resume"): self._resume_host,
            ("app", "hello"): hello.app,
            ("app", "evidence"): self._app_evidence,
            ("app", "colocation_proof"): self._colocation_proof,
            ("app", "recheck_evidence"): self._app_recheck,
            ("app", "resume"): self._resume_app,
            ("gateway", "report"): self._report,
        }

    async def take(self, subject: str, data: bytes) -> None:
        """Handle one message. Raises Refusal, NoMove, Stale, Replayed, Early, BusError."""
        role, id, step = subjects.parse_inbound(subject)
        handler = self._handlers.get((role, step))
        if handler is None:
            raise Refusal.because(
                "message.step", "step", expected="a step of this role", found=step, action="check the sender's version"
            )
        await handler(id, data)

    async def _host_evidence(self, id: str, data: bytes) -> None:
        async def step(record: HostRecord) -> HostRecord:
            context = self._context()
            evidence = unpack(HostEvidence, _open_first(record, id, data, context))
            judgement = await self._judge.host(record, evidence, context.now)
            return take_host_evidence(record, self._context(), data, evidence, judgement)

        await self._store.change(HostRecord, unpack(Sealed, data).session, step)

    async def _host_proof(self, id: str, data: bytes) -> None:
        async def step(record: HostRecord) -> HostRecord:
            _owned(record, id)
            return take_host_proof(record, self._context(), data)

        await self._store.change(HostRecord, unpack(Frame, data).session, step)

    async def _host_recheck(self, id: str, data: bytes) -> None:
        async def step(record: HostRecord) -> HostRecord:
            channel, plaintext = _open(record, id, "recheck_evidence", data)
            context, evidence = self._context(), unpack(HostRecheckEvidence, plaintext)
            if _late(record, evidence.nonce, context):
                return late_answer(record, context, channel)
            try:
                judgement = await self._judge.host_recheck(record, evidence, context.now)
            except Refusal as refusal:
                return unjudged_answer(record, self._context(), channel, refusal)
            return take_host_recheck(record, self._context(), channel, judgement)

        await self._store.change(HostRecord, unpack(Frame, data).session, step)

    async def _key_delivered(self, id: str, data: bytes) -> None:
        async def step(record: HostRecord) -> HostRecord:
            channel, plaintext = _open(record, id, "key_delivered", data)
            return take_delivered(record, self._context(), channel, unpack(KeyDelivered, plaintext))

        await self._store.change(HostRecord, unpack(Frame, data).session, step)

    async def _app_evidence(self, id: str, data: bytes) -> None:
        async def step(record: AppRecord) -> AppRecord:
            context = self._context()
            evidence = unpack(AppEvidence, _open_first(record, id, data, context))
            enrolled = await self._registry.app(id)
            volume = next((place.volume for place in enrolled.placements if place.host == record.host), None)
            host = await self._host_of(record, context)
            if isinstance(host, Reason) or volume is None:
                judgement = _unjudged(host if isinstance(host, Reason) else NO_PLACEMENT)
                return take_application_evidence(
                    record, context, data, evidence, judgement, host_session=None, volume=0
                )
            judgement = await self._judge.app(record, evidence, host, context.now)
            return take_application_evidence(
                record, self._context(), data, evidence, judgement, host_session=host.session, volume=volume
            )

        await self._store.change(AppRecord, unpack(Sealed, data).session, step)

    async def _colocation_proof(self, id: str, data: bytes) -> None:
        async def step(record: AppRecord) -> AppRecord:
            _owned(record, id)
            host = await self._trusted_host(record)
            if host.k is None:
                raise AssertionError("a trusted host without K")
            return take_colocation_proof(record, self._context(), data, host.k)

        await self._store.change(AppRecord, unpack(Frame, data).session, step)

    async def _app_recheck(self, id: str, data: bytes) -> None:
        async def step(record: AppRecord) -> AppRecord:
            channel, plaintext = _open(record, id, "recheck_evidence", data)
            context, evidence = self._context(), unpack(AppRecheckEvidence, plaintext)
            if _late(record, evidence.nonce, context):
                return late_answer(record, context, channel)
            host = await self._trusted_host(record)
            try:
                judgement = await self._judge.app_recheck(record, evidence, host, context.now)
            except Refusal as refusal:
                return unjudged_answer(record, self._context(), channel, refusal)
            identity = spiffe_id(self._trust_domain, record.host, record.subject)
            enrolled = await self._registry.app(id)
            due = not judgement.reasons and renewal_due(record, context)
            judged = record.model_copy(update={"outcome": judgement.outcome})
            issued = self._certificates.issue(judged, enrolled) if due else None
            return take_application_recheck(
                record, self._context(), channel, judgement, identity, host, enrolled, issued
            )

        await self._store.change(AppRecord, unpack(Frame, data).session, step)

    async def _resume_host(self, id: str, data: bytes) -> None:
        await self._resume(HostRecord, id, data)

    async def _resume_app(self, id: str, data: bytes) -> None:
        await self._resume(AppRecord, id, data)

    async def _resume(self, kind: type[R], id: str, data: bytes) -> None:
        session = unpack(Resume, data).session
        _owned(await self._store.load(kind, session), id)
        await self._store.resend(kind, session)

    async def _report(self, id: str, data: bytes) -> None:
        gateway = await self._registry.gateway(id)
        report = open_report(data, {gateway.identity})
        if report.gateway != id:
            raise Refusal.because(
                "gateway.report", "gateway", expected=id, found=report.gateway, action="report on your own subject"
            )
        for applied in report.applied:
            if applied.state == "admitted" and applied.app_session is not None:
                serial = applied.key.removeprefix("cert.")
                await self._outbox.work("app", applied.app_session, "applied", Applied(gateway=id, serial=serial))
        for signed in report.glass:
            await self._orders.broken_glass(id, signed)

    async def _host_of(self, record: AppRecord, context: Context) -> HostRecord | Reason:
        """The trusted session of the application's host, or why there is none."""
        session = await self._outbox.pointer(current_key("host", record.host, record.host))
        if session is None:
            return NO_HOST
        host = await self._store.load(HostRecord, session)
        return host if host.trusted(context.now) else NO_HOST

    async def _trusted_host(self, record: AppRecord) -> HostRecord:
        """The host session that the application's rests on, read again. Raises NoMove if it is trusted no more."""
        if record.host_session is None:
            raise NoMove(record.state, Input.PROOF_GOOD)
        host = await self._store.load(HostRecord, record.host_session)
        if not host.trusted(self._context().now):
            raise NoMove(record.state, Input.HOST_LOST)
        return host


def _owned(record: HostRecord | AppRecord, id: str) -> None:
    if record.subject != id:
        raise Refusal.because(
            "message.owner",
            "session",
            expected=f"a session of {id}",
            found="another's",
            action="find out who uses this credential",
        )


def _open_first(record: HostRecord | AppRecord, id: str, data: bytes, context: Context) -> bytes:
    _owned(record, id)
    if record.state is not State.CHALLENGED or record.handshake is None:
        raise NoMove(record.state, Input.EVIDENCE_GOOD)
    return open_evidence(record.handshake, record.session, record.suite, data, context)


def _open(record: HostRecord | AppRecord, id: str, step: str, data: bytes) -> tuple[Channel, bytes]:
    """Open a channel message; what the peer has now heard need not be sent again."""
    _owned(record, id)
    if record.over or record.channel is None:
        raise NoMove(record.state, Input.EVIDENCE_GOOD)
    return record.channel.open(step, data)


def _late(record: HostRecord | AppRecord, nonce: bytes, context: Context) -> bool:
    """Whether an answer is to a question that is no longer asked."""
    question = record.question
    if question is None or question.nonce != nonce:
        return True
    return context.now > question.window_end + context.timing.skew_s


def _unjudged(reason: Reason) -> Judgement:
    """What there is to say of evidence that was not judged: it ends nothing."""
    outcome = Outcome(
        simulated=False,
        integrity="unanchored",
        observe_only=False,
        quote_id="00" * 32,
        mrenclave="00" * 32,
        tcb_status="none",
        policy={},
    )
    return Judgement(own=False, reasons=(reason,), outcome=outcome, platform={})


NO_HOST = Reason(
    code="host.not-trusted",
    field="host",
    expected="a host session that is trusted now",
    found="none",
    action="start the host's agent and wait until it is accepted; the application tries again by itself",
)
