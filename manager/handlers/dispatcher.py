"""Which handler takes which message: one table by role and step for agents' messages, one for inter-session messages.

Agents and gateways publish on `attest.v1.in.<role>.<name>.<step>`, sessions on
`attest.v1.work.<role>.<session>.<what>`.
Neither can be taken for the other: a credential may publish on its own subjects only, and inter-session messages are
encrypted under the storage key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import structlog

from attestgate.bus import subjects
from attestgate.bus.crypto.channel import Frame
from attestgate.manager.handlers.agent_messages import AgentMessages
from attestgate.manager.handlers.gateway_reports import GatewayReports
from attestgate.manager.handlers.hello import HelloHandler
from attestgate.manager.handlers.operators import Operators
from attestgate.manager.handlers.session_messages import SessionSteps
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.records.session_store import R, SessionStore
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.inter_session import AppliedAtGateway, Deliver, Delivered, Issue, Order
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import InvalidTransition
from attestgate.manager.sessions.step6_colocation import grant_application, order_delivery
from attestgate.manager.sessions.termination import replace_unfinished, revoke, supersede
from attestgate.schemas.base import Model, Refusal, unpack, unpack_own
from attestgate.schemas.limits import check_command, check_inbound
from attestgate.schemas.messages import Sealed

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=Model)
Handler = Callable[[str, bytes], Awaitable[None]]
"""Takes the id of the sender, or of the session that is addressed, and the message's bytes."""
Table = Mapping[tuple[str, str], Handler]


class Dispatcher:
    """Passes each message to its handler."""

    def __init__(
        self,
        store: SessionStore,
        messages: SessionMessages,
        hello: HelloHandler,
        agents: AgentMessages,
        sessions: SessionSteps,
        reports: GatewayReports,
        operators: Operators,
    ) -> None:
        self._store = store
        self._messages = messages
        self._operators = operators
        self._due = sessions.due
        self._from_agents: Table = {
            ("host", "hello"): hello.host,
            ("host", "evidence"): partial(self._opened, HostRecord, Sealed, agents.host_evidence),
            ("host", "key_proof"): partial(self._opened, HostRecord, Frame, agents.host_proof),
            ("host", "recheck_evidence"): partial(self._opened, HostRecord, Frame, agents.host_recheck),
            ("host", "recheck_list"): partial(self._opened, HostRecord, Frame, agents.host_recheck_list),
            ("host", "key_delivered"): partial(self._opened, HostRecord, Frame, agents.key_delivered),
            ("host", "resume"): partial(agents.resume, HostRecord),
            ("app", "hello"): hello.app,
            ("app", "evidence"): partial(self._opened, AppRecord, Sealed, agents.app_evidence),
            ("app", "colocation_proof"): partial(self._opened, AppRecord, Frame, agents.colocation_proof),
            ("app", "recheck_evidence"): partial(self._opened, AppRecord, Frame, agents.app_recheck),
            ("app", "resume"): partial(agents.resume, AppRecord),
            ("gateway", "report"): reports.take,
        }
        self._from_sessions: Table = {
            ("host", "deliver"): partial(self._pure, HostRecord, Deliver, order_delivery),
            ("host", "recheck"): partial(self._step, HostRecord, Order, sessions.recheck),
            ("host", "revoke"): partial(self._pure, HostRecord, Order, revoke),
            ("host", "superseded"): partial(self._pure, HostRecord, Order, supersede),
            ("host", "replaced"): partial(self._pure, HostRecord, Order, replace_unfinished),
            ("app", "delivered"): partial(self._pure, AppRecord, Delivered, grant_application),
            ("app", "issue"): partial(self._step, AppRecord, Issue, sessions.issue),
            ("app", "applied"): partial(self._step, AppRecord, AppliedAtGateway, sessions.applied),
            ("app", "host-lost"): sessions.host_lost,
            ("app", "revoked-certificate"): sessions.revoked_certificate,
            ("app", "recheck"): partial(self._step, AppRecord, Order, sessions.recheck),
            ("app", "revoke"): partial(self._pure, AppRecord, Order, revoke),
            ("app", "superseded"): partial(self._pure, AppRecord, Order, supersede),
            ("app", "replaced"): partial(self._pure, AppRecord, Order, replace_unfinished),
        }

    async def take(self, subject: str, data: bytes) -> None:
        """Handle one message.

        Raises Refusal, BusError; for messages from outside also InvalidTransition, Duplicate, OutOfOrder.
        """
        if subjects.is_internal(subject):
            try:
                await self._internal(subject, data)
            except InvalidTransition as moved_on:
                # Messages here are encrypted under the storage key, or are timers, which are only hints: one that no
                # longer fits is late, never hostile, so it is no event.
                log.info("ignored: session has moved on", subject=subject, why=str(moved_on))
        elif subject.startswith(f"{subjects.OPERATOR}."):
            name, command = subjects.parse_operator(subject)
            check_command(command, data)
            await self._operators.take(name, data)
        else:
            role, id, step = subjects.parse_inbound(subject)
            handler = _known(self._from_agents, role, step, "message.step", "check the sender's version")
            # Before anything of it is read: the largest message that the bus takes would keep this worker busy.
            check_inbound(role, step, data)
            await handler(id, data)

    async def _internal(self, subject: str, data: bytes) -> None:
        if subject.startswith(f"{subjects.DUE}."):
            await self._due(subjects.parse_due(subject), data)
            return
        role, session, what = subjects.parse_work(subject)
        handler = _known(self._from_sessions, role, what, "work.kind", "run the same version on all workers")
        await handler(session, self._messages.open(subject, data))

    async def _opened(
        self,
        kind: type[R],
        envelope: type[Sealed] | type[Frame],
        step: Callable[[R, str, bytes], Awaitable[R]],
        id: str,
        data: bytes,
    ) -> None:
        """An agent's message: its envelope names the session, the step decrypts it with the record's keys."""
        await self._store.change(kind, unpack(envelope, data).session, step, id, data)

    async def _step(
        self, kind: type[R], model: type[M], step: Callable[[R, M], Awaitable[R]], session: str, data: bytes
    ) -> None:
        """An inter-session message, taken by a step that needs more than the record."""
        await self._store.change(kind, session, step, unpack_own(model, data))

    async def _pure(
        self, kind: type[R], model: type[M], step: Callable[[R, Context, M], R], session: str, data: bytes
    ) -> None:
        """An inter-session message, taken by a pure step."""
        await self._store.apply(kind, session, step, unpack_own(model, data))


def _known(table: Table, role: str, step: str, code: str, action: str) -> Handler:
    handler = table.get((role, step))
    if handler is None:
        raise Refusal.because(code, "step", expected=f"a step of role {role}", found=step, action=action)
    return handler
