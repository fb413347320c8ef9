"""Inter-session messages and timers: steps that need more than the record and the message."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from attestgate.manager.handlers.agent_messages import trusted_host
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.policy.policies import Policies
from attestgate.manager.records.issuance import Certificates
from attestgate.manager.records.ranks import Ranks
from attestgate.manager.records.session_store import UNKNOWN, R, SessionStore
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.inter_session import AppliedAtGateway, HostLost, Issue, Order, RevokedCertificate
from attestgate.manager.sessions.recheck import TooEarly, ask_again, on_timer
from attestgate.manager.sessions.record import AppRecord, HostRecord, waking
from attestgate.manager.sessions.states import Input, InvalidTransition, State
from attestgate.manager.sessions.step7_certificate import certify, take_applied
from attestgate.manager.sessions.termination import lose_host, supersede, superseded_by
from attestgate.schemas.base import Refusal, unpack_own

log = structlog.get_logger(__name__)


class SessionSteps:
    """Steps from a record and a message to the next record, and handlers of messages that change no record."""

    def __init__(
        self,
        store: SessionStore,
        ranks: Ranks,
        enrolments: Enrolments,
        policies: Policies,
        context: Callable[[], Context],
        certificates: Certificates,
    ) -> None:
        self._store = store
        self._ranks = ranks
        self._enrolments = enrolments
        self._policies = policies
        self._context = context
        self._certificates = certificates

    async def issue(self, record: AppRecord, _: Issue) -> AppRecord:
        """The proof is valid: issue the certificate (step 7)."""
        if record.state is not State.PROVEN:
            raise InvalidTransition(record.state, Input.ISSUED)
        # Two workers may each sign a certificate here; only the one whose record is stored is leased. The other's
        # serial is known to no gateway, so it opens nothing.
        host = await trusted_host(self._store, record, self._context())
        if (newer := await self._ranks.newer(record)) is not None:
            return supersede(record, self._context(), Order(reasons=[superseded_by(newer)]))
        enrolled = await self._enrolments.app(record.subject)
        await self._enrolments.check_still("app", record.subject, record.basis)
        issued = self._certificates.issue(record, enrolled.subject)
        return certify(record, self._context(), issued, host, enrolled)

    async def applied(self, record: AppRecord, report: AppliedAtGateway) -> AppRecord:
        """A gateway admits the certificate (step 7). Refused if the enrolment or the trusted host is gone meanwhile."""
        if record.ready == record.serial:
            return record
        await self._enrolments.app(record.subject)
        await trusted_host(self._store, record, self._context())
        return take_applied(record, self._context(), report)

    async def recheck(self, record: R, _: Order) -> R:
        """An operator asks for fresh evidence now."""
        return ask_again(record, self._context(), await self.policy())

    async def host_lost(self, session: str, data: bytes) -> None:
        """The host's session has ended. It names every application session it knows, also ones deleted since."""
        lost = unpack_own(HostLost, data)
        try:
            await self._store.apply(AppRecord, session, lose_host, lost)
        except Refusal as refusal:
            if refusal.reasons[0].code != UNKNOWN:
                raise
            log.info("ignored: session no longer exists", session=session)

    async def revoked_certificate(self, _: str, data: bytes) -> None:
        """Add a certificate to its issuer's revocation list."""
        await self._certificates.revoked(unpack_own(RevokedCertificate, data))

    async def due(self, session: str, data: bytes) -> None:
        """A session's timer: a recheck, its deadline, or its deletion. `data` is as `waking` makes it."""
        if data.split(b" ")[0] == b"host":
            await self._due(HostRecord, session, data)
        else:
            await self._due(AppRecord, session, data)

    async def _due(self, kind: type[R], session: str, data: bytes) -> None:
        try:
            record = await self._store.change(kind, session, self._wake)
        except TooEarly:
            record = await self._store.load(kind, session)
            if data == waking(record):
                raise
            # A timer from before the session's last step: put back as well, it would come again without end.
            await self._store.wake_in_time(record)
            return
        if record.over and self._context().now >= record.deadline:
            await self._store.forget(record)

    async def _wake(self, record: R) -> R:
        return on_timer(record, self._context(), await self.policy())

    async def policy(self) -> dict[str, str]:
        """The documents in force by name. Empty if they cannot be read: the next appraisal reports why."""
        try:
            return (await self._policies.in_force()).names
        except Refusal:
            return {}
