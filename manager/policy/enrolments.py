"""Who is enrolled: by operators' signed commands, and the managers' signed word that they are in force."""

from __future__ import annotations

from collections.abc import Callable

from attestgate.bus.api import Bucket, BusError
from attestgate.manager.local.marks import Marks
from attestgate.manager.policy.in_force import Enter, Held, StatementsInForce
from attestgate.manager.sessions.enrolled import E, Enrolled
from attestgate.manager.sessions.record import Basis
from attestgate.schemas.base import Refusal
from attestgate.schemas.binding import Role
from attestgate.schemas.enrolment import (
    AppEnrolment,
    Command,
    Enrol,
    GatewayEnrolment,
    HostEnrolment,
    Revoke,
    SubjectKind,
)
from attestgate.schemas.in_force import InForce
from attestgate.schemas.signing import Signed

BUCKET = "enrolment"
READ_WITHIN_S = 1.0
"""How old an enrolment may be when what rests on it is stored: the time that it took to read it."""


class Enrolments:
    """Who is enrolled, by the operators' newest word."""

    def __init__(
        self, bucket: Bucket, in_force: StatementsInForce[Command], marks: Marks, steady: Callable[[], float]
    ) -> None:
        self._bucket = bucket
        self._in_force = in_force
        self._marks = marks
        self._steady = steady

    async def host(self, id: str) -> Enrolled[HostEnrolment]:
        """A host's enrolment. Raises Refusal (`enrolment.*`, `host.held`), BusError."""
        enrolled = await self._subject("host", id, HostEnrolment)
        check_not_held(id, enrolled.order, self._marks.held(id))
        return enrolled

    async def app(self, id: str) -> Enrolled[AppEnrolment]:
        """An application's enrolment. Raises Refusal (`enrolment.*`), BusError."""
        return await self._subject("app", id, AppEnrolment)

    async def gateway(self, id: str) -> GatewayEnrolment:
        """A gateway's enrolment. Raises Refusal (`enrolment.*`), BusError."""
        return (await self._subject("gateway", id, GatewayEnrolment)).subject

    async def check_still(self, role: Role, id: str, basis: Basis | None) -> None:
        """The last thing before a lease is stored: the enrolment by which the evidence was judged is in force now.

        Raises Refusal (`enrolment.*`; `enrolment.changed` if it is another), and BusError if the bus took so long to
        say it that another may be by now.
        """
        asked = self._steady()
        enrolled = await (self.host(id) if role == "host" else self.app(id))
        if self._steady() - asked > READ_WITHIN_S:
            raise BusError(f"enrolment of {role} {id}: not read within {READ_WITHIN_S:g} s")
        judged_by = basis.enrolled if basis is not None else 0
        if enrolled.order != judged_by:
            raise Refusal.because(
                "enrolment.changed",
                f"{role} {id}",
                expected=f"the enrolment of {judged_by}, by which the evidence was judged",
                found=f"one of {enrolled.order}",
                action="nothing: fresh evidence is judged by the newer one",
            )

    async def check_known(self, kind: SubjectKind, id: str) -> None:
        """Raises Refusal for an id that nobody ever enrolled: a mistyped revocation must not look like one."""
        if not await self._in_force.known(f"{kind}.{id}"):
            raise Refusal.because(
                "enrolment.unknown",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=id,
                action="check the spelling: attestgate sessions shows who is there",
            )

    async def newest(self, kind: SubjectKind, id: str, but: Signed | None = None) -> int:
        """The sequence of the newest command in force about a subject, other than `but`; 0 if there is none."""
        return await self._in_force.newest_order(f"{kind}.{id}", but)

    async def put(
        self, kind: SubjectKind, id: str, signed: Signed, command: Command, said: InForce, enter: Enter | None
    ) -> None:
        """Put a command about a subject in force, unless there is a newer one; `enter` as in StatementsInForce.put.

        Raises Refusal (`command.sequence`, `command.unseen`), BusError.
        """

        def check(newest: Held[Command]) -> None:
            if said.order <= newest.said.order:
                raise overtaken(kind, id, newest.said.order, said.order)

        await self._in_force.put(f"{kind}.{id}", signed, command, said, check, command.seen, enter)

    async def _subject(self, kind: SubjectKind, id: str, model: type[E]) -> Enrolled[E]:
        key = f"{kind}.{id}"
        held = await self._in_force.newest(key, await self._bucket.get(key))
        if held is None or held.says is None:
            raise Refusal.because(
                "enrolment.unknown",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=id,
                action=f"enrol it: attestgate enrol {kind} {id}",
            )
        action = held.says.action
        # Its expiry bounds when a command may be applied: what was applied in time stands for as long as nothing newer.
        # A revocation counts whenever it comes.
        if not isinstance(action, Revoke) and held.said.applied_at > held.says.expires_at:
            raise Refusal.because(
                "enrolment.expired",
                key,
                expected=f"a command applied by {held.says.expires_at}",
                found=held.said.applied_at,
                action="sign it again",
            )
        if isinstance(action, Revoke):
            raise Refusal.because(
                "enrolment.revoked",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=f"{id}, revoked by {held.said.operator}: {action.reason}",
                action=f"enrol it again once that is resolved: attestgate enrol {kind} {id}",
            )
        if held.said.order < self._marks.enrolled(key):
            raise _hidden(kind, id, self._marks.enrolled(key), held.said.order)
        # The managers' signature is for this key, and they put nothing there but commands about its subject.
        if not isinstance(action, Enrol) or not isinstance(action.subject, model):
            raise AssertionError(f"{action.do} stands under {key}")
        return Enrolled(action.subject, held.said.order)


def overtaken(kind: SubjectKind, id: str, newest: int, sequence: int) -> Refusal:
    """Why a command about a subject is not put in force after a newer one about it."""
    return Refusal.because(
        "command.sequence",
        f"{kind} {id}",
        expected=f"a command newer than {newest}",
        found=sequence,
        action="a newer command about it is in force: look at it (attestgate enrolments list), and sign again",
    )


def _hidden(kind: SubjectKind, id: str, known: int, found: int) -> Refusal:
    return Refusal.because(
        "enrolment.rollback",
        f"{kind} id",
        expected=f"the enrolment of {known}, by which a gateway has a lease, or a later one",
        found=f"one of {found}",
        action=f"enrol it again if the key that signed the later one was taken out (attestgate enrol {kind} {id});"
        " otherwise find out who hides it on the bus",
    )


def check_not_held(host: str, enrolled: int, held: int) -> None:
    """Raises Refusal `host.held` for a host that has not been enrolled again since it was `held`."""
    if enrolled <= held:
        raise Refusal.because(
            "host.held",
            "host id",
            expected=f"an enrolment after {held}, when its evidence was found bad",
            found=f"one of {enrolled}",
            action=f"find out what ran there, install it anew, then: attestgate enrol host {host}",
        )
