"""Steps 1 and 5 begin: a hello opens a session, if its subject is enrolled and within its rate limit.

Nothing in a hello is trusted. The session it opens replaces an unfinished session of the same subject, never a live
one: that takes evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attestgate.bus import subjects
from attestgate.bus.api import Bus
from attestgate.bus.crypto.envelope import SuiteName
from attestgate.manager.handlers.rate_limit import SENDERS, Limiter
from attestgate.manager.policy.enrolments import Enrolments, check_not_held
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.ranks import Ranks
from attestgate.manager.records.session_store import SessionStore
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.handshake import session_id
from attestgate.manager.sessions.record import pending_key
from attestgate.manager.sessions.step1_attest_host import challenge_host
from attestgate.manager.sessions.step5_attest_application import challenge_application
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.binding import Role, hello_hash
from attestgate.schemas.messages import REFUSED, AppHello, EvidenceKind, HostHello, Refused, to_agent

HELLOS_A_SECOND = 1
"""New sessions that a name may open per second; a hello above that is dropped."""
SESSIONS_AT_ONCE, SESSIONS_A_SECOND = 30, 0.1
"""New sessions that a name may open in a row, and then per second: each leaves a record for an hour, events, and an
entry of the decision log."""


class HelloHandler:
    """Handles hellos: admission of sessions."""

    def __init__(
        self,
        bus: Bus,
        store: SessionStore,
        current: CurrentSessions,
        ranks: Ranks,
        enrolments: Enrolments,
        context: Callable[[], Context],
        suite: SuiteName,
        steady: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._store = store
        self._current = current
        self._ranks = ranks
        self._enrolments = enrolments
        self._context = context
        self._suite: SuiteName = suite
        self._steady = steady
        self._last: dict[str, tuple[float, str]] = {}
        self._sessions = Limiter(SESSIONS_A_SECOND, SESSIONS_AT_ONCE)

    async def host(self, name: str, data: bytes) -> None:
        """A host's hello. Raises Refusal."""
        hello = unpack(HostHello, data)
        _same_name(name, hello.host)
        session = self._admit("host", name, name, data)
        try:
            self._context().check_log()
            in_force = await self._enrolments.host(name)
            check_not_held(name, in_force.order, await self._current.held(name))
        except Refusal as refusal:
            await self._refuse("host", name, session, data, refusal)
            raise
        rank, _ = await self._ranks.known("host", name, name)
        context = replace(self._context(), known_rank=rank)
        wanted: list[EvidenceKind] = ["sgx", "ima", "tpm"] if in_force.subject.enrolled_tpm else ["sgx", "ima"]
        record = challenge_host(session, hello, data, context, self._suite, wanted)
        await self._store.create(record)
        await self._current.point(pending_key("host", name, name), session, "replaced")

    async def app(self, name: str, data: bytes) -> None:
        """An application's hello. Raises Refusal."""
        hello = unpack(AppHello, data)
        _same_name(name, subjects.app_name(hello.host, hello.app))
        session = self._admit("app", name, hello.app, data)
        try:
            self._context().check_log()
            await self._placed(hello.app, hello.host)
        except Refusal as refusal:
            await self._refuse("app", name, session, data, refusal)
            raise
        rank, _ = await self._ranks.known("app", hello.app, hello.host)
        context = replace(self._context(), known_rank=rank)
        record = challenge_application(session, hello, data, context, self._suite)
        await self._store.create(record)
        await self._current.point(pending_key("app", hello.app, hello.host), session, "replaced")

    async def _placed(self, id: str, host: str) -> None:
        """Raises Refusal (`enrolment.*`) unless an application is enrolled for a host."""
        hosts = [place.host for place in (await self._enrolments.app(id)).subject.placements]
        if host not in hosts:
            raise Refusal.because(
                "enrolment.placement",
                "host",
                expected=f"one of {', '.join(hosts)}",
                found=host,
                action=f"enrol it for this host: attestgate enrol app {id} --host {host}",
            )

    def _admit(self, role: Role, name: str, id: str, data: bytes) -> str:
        """The session id of a hello within the rate limits; a repeated delivery of the last hello does not count again.

        The limits are of a credential's name, so a sender cannot invent keys to get round them or to fill the tables.
        """
        key, session, now = f"{role}.{name}", session_id(role, id, data), self._steady()
        when, which = self._last.get(key, (float("-inf"), ""))
        if which == session:
            return session
        if now - when < HELLOS_A_SECOND:
            raise _too_often(role, name, f"at most {HELLOS_A_SECOND} hello per second")
        if not self._sessions.take(key, now):
            expected = f"at most {SESSIONS_AT_ONCE} sessions at once, then one every {1 / SESSIONS_A_SECOND:g} seconds"
            raise _too_often(role, name, expected)
        self._last.pop(key, None)
        self._last[key] = (now, session)
        if len(self._last) > SENDERS:  # the bus itself can name any sender
            del self._last[next(iter(self._last))]
        return session

    async def _refuse(self, role: Role, name: str, session: str, data: bytes, refusal: Refusal) -> None:
        """Notify the sender why no session was opened."""
        notice = Refused(session=session, hello=hello_hash(data), step="hello", reasons=list(refusal.reasons))
        signed = self._context().identity.sign(REFUSED, to_agent(role, name), notice)
        await self._bus.send(subjects.outbound(role, name, "refused"), pack(signed))


def _too_often(role: Role, name: str, expected: str) -> Refusal:
    return Refusal.because(
        "hello.rate",
        f"{role} name",
        expected=expected,
        found=f"another from {name}",
        action="nothing, if the agent was restarted; otherwise find out who else uses its credential",
    )


def _same_name(subject: str, claimed: str) -> None:
    if subject != claimed:
        raise Refusal.because(
            "hello.id",
            "id",
            expected=f"{subject}, the name in the subject and the credential",
            found=claimed,
            action="give the agent the credential of its own name",
        )
