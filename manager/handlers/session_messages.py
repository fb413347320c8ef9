"""What sessions say to each other and what the clock says: the other half of a worker's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from attestgate.bus import subjects
from attestgate.manager.policy.registry import Registry
from attestgate.manager.records.issuance import Certificates
from attestgate.manager.records.session_store import UNKNOWN, R, SessionStore
from attestgate.manager.records.vault import Vault
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.recheck import ask_again, order_end, wake
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import Input, NoMove, State
from attestgate.manager.sessions.step6_colocation import grant_application, order_delivery
from attestgate.manager.sessions.step7_certificate import certify, take_applied
from attestgate.manager.sessions.work import WORK, Applied, Deliver, Delivered, HostLost, Issue, Order, Revoked, Work
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.enrolment import AppEnrolment

log = structlog.get_logger(__name__)
Handler = Callable[[str, bytes], Awaitable[None]]


class Internal:
    """Takes messages of `attest.v1.work.<role>.<session>.<what>` and deadlines that have come."""

    def __init__(
        self,
        store: SessionStore,
        registry: Registry,
        context: Callable[[], Context],
        certificates: Certificates,
        vault: Vault,
    ) -> None:
        self._store = store
        self._vault = vault
        self._registry = registry
        self._context = context
        self._certificates = certificates
        self._handlers: dict[tuple[str, str], Handler] = {
            ("host", "deliver"): self._deliver,
            ("host", "revoke"): self._order(HostRecord, Input.REVOKE),
            ("host", "superseded"): self._order(HostRecord, Input.SUPERSEDE),
            ("host", "replaced"): self._order_unfinished(HostRecord),
            ("host", "recheck"): self._recheck(HostRecord),
            ("app", "delivered"): self._delivered,
            ("app", "issue"): self._issue,
            ("app", "applied"): self._applied,
            ("app", "host-lost"): self._host_lost,
            ("app", "revoked-certificate"): self._revoked_certificate,
            ("app", "revoke"): self._order(AppRecord, Input.REVOKE),
            ("app", "superseded"): self._order(AppRecord, Input.SUPERSEDE),
            ("app", "replaced"): self._order_unfinished(AppRecord),
            ("app", "recheck"): self._recheck(AppRecord),
        }

    async def take(self, subject: str, data: bytes) -> None:
        """Handle one message. A session that has moved on makes it moot. Raises Refusal, BusError."""
        try:
            await self._take(subject, data)
        except NoMove as moot:
            log.info("moot", subject=subject, why=str(moot))

    async def _take(self, subject: str, data: bytes) -> None:
        if subject.startswith(f"{subjects.DUE}."):
            await self._due(subjects.parse_due(subject), data)
            return
        role, session, what = subjects.parse_work(subject)
        handler = self._handlers.get((role, what))
        if handler is None:
            raise Refusal.because(
                "work.kind", "subject", expected="known work", found=subject, action="run workers of one version"
            )
        await handler(session, self._vault.open(Work, WORK, subject, data).data)

    async def keep(self) -> None:
        """What no message asks for: revocation lists that do not lapse, policies at hand. Runs for ever."""
        await asyncio.gather(self._certificates.keep_lists(), self._registry.follow())

    async def _policy(self) -> dict[str, str]:
        """The documents in force by name; none if they cannot be read, which the next verdict will say."""
        try:
            return (await self._registry.policies()).names
        except Refusal:
            return {}

    async def _due(self, session: str, data: bytes) -> None:
        policy = await self._policy()

        async def step(record: R) -> R:
            return wake(record, self._context(), policy)

        record: HostRecord | AppRecord
        if data == b"host":
            record = await self._store.change(HostRecord, session, step)
        else:
            record = await self._store.change(AppRecord, session, step)
        if record.over and self._context().now >= record.deadline:
            await self._store.forget(record)

    async def _deliver(self, session: str, data: bytes) -> None:
        request = unpack(Deliver, data)

        async def step(record: HostRecord) -> HostRecord:
            return order_delivery(record, self._context(), request)

        await self._store.change(HostRecord, session, step)

    async def _delivered(self, session: str, data: bytes) -> None:
        told = unpack(Delivered, data)

        async def step(record: AppRecord) -> AppRecord:
            return grant_application(record, self._context(), told)

        await self._store.change(AppRecord, session, step)

    async def _issue(self, session: str, data: bytes) -> None:
        unpack(Issue, data)

        async def step(record: AppRecord) -> AppRecord:
            context = self._context()
            if record.state is not State.PROVEN:
                raise NoMove(record.state, Input.ISSUED)
            host, enrolled = await self._host_again(record)
            issued = self._certificates.issue(record, enrolled)
            return certify(record, context, issued, host, enrolled)

        await self._store.change(AppRecord, session, step)

    async def _host_again(self, record: AppRecord) -> tuple[HostRecord, AppEnrolment]:
        """The host session that an application rests on, and the application's enrolment, read again.

        Raises NoMove if the host is trusted no more, Refusal (`enrolment.*`) if the application was revoked.
        """
        enrolled = await self._registry.app(record.subject)
        if record.host_session is None:
            raise NoMove(record.state, Input.HOST_LOST)
        host = await self._store.load(HostRecord, record.host_session)
        if not host.trusted(self._context().now):
            raise NoMove(record.state, Input.HOST_LOST)
        return host, enrolled

    async def _applied(self, session: str, data: bytes) -> None:
        report = unpack(Applied, data)

        async def step(record: AppRecord) -> AppRecord:
            if record.ready == record.serial:
                return record
            await self._host_again(record)
            return take_applied(record, self._context(), report)

        await self._store.change(AppRecord, session, step)

    async def _revoked_certificate(self, session: str, data: bytes) -> None:
        await self._certificates.revoked(unpack(Revoked, data))

    async def _host_lost(self, session: str, data: bytes) -> None:
        lost = unpack(HostLost, data)

        async def step(record: AppRecord) -> AppRecord:
            return order_end(record, self._context(), Input.HOST_LOST, "host-lost", lost.reasons)

        try:
            await self._store.change(AppRecord, session, step)
        except Refusal as refusal:
            if refusal.reasons[0].code != UNKNOWN:
                raise
            log.info("long gone", session=session)  # a host names every application that it ever gave a key to

    def _order(self, kind: type[R], given: Input) -> Handler:
        async def handle(session: str, data: bytes) -> None:
            order = unpack(Order, data)

            async def step(record: R) -> R:
                return order_end(record, self._context(), given, given.lower(), order.reasons)

            await self._store.change(kind, session, step)

        return handle

    def _order_unfinished(self, kind: type[R]) -> Handler:
        """A newer hello replaces a handshake, never a session that has got past it."""

        async def handle(session: str, data: bytes) -> None:
            order = unpack(Order, data)

            async def step(record: R) -> R:
                if record.over or record.channel is not None:
                    return record
                return order_end(record, self._context(), Input.SUPERSEDE, "replaced", order.reasons)

            await self._store.change(kind, session, step)

        return handle

    def _recheck(self, kind: type[R]) -> Handler:
        async def handle(session: str, data: bytes) -> None:
            unpack(Order, data)
            policy = await self._policy()

            async def step(record: R) -> R:
                return ask_again(record, self._context(), policy)

            await self._store.change(kind, session, step)

        return handle
