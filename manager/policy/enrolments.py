"""Who is enrolled: by operators' signed commands, and the managers' signed word that they are in force."""

from __future__ import annotations

from typing import TypeVar

from attestgate.bus.api import Bucket
from attestgate.manager.policy.in_force import Enter, Held, StatementsInForce
from attestgate.schemas.base import Refusal
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

E = TypeVar("E", HostEnrolment, AppEnrolment, GatewayEnrolment)
BUCKET = "enrolment"


class Enrolments:
    """Who is enrolled, by the operators' newest word."""

    def __init__(self, bucket: Bucket, in_force: StatementsInForce[Command]) -> None:
        self._bucket = bucket
        self._in_force = in_force

    async def host(self, id: str) -> HostEnrolment:
        """A host's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("host", id, HostEnrolment)

    async def app(self, id: str) -> AppEnrolment:
        """An application's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("app", id, AppEnrolment)

    async def gateway(self, id: str) -> GatewayEnrolment:
        """A gateway's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("gateway", id, GatewayEnrolment)

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

    async def _subject(self, kind: SubjectKind, id: str, model: type[E]) -> E:
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
        if held.said.applied_at > held.says.expires_at:
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
        # The managers' signature is for this key, and they put nothing there but commands about its subject.
        if not isinstance(action, Enrol) or not isinstance(action.subject, model):
            raise AssertionError(f"{action.do} stands under {key}")
        return action.subject


def overtaken(kind: SubjectKind, id: str, newest: int, sequence: int) -> Refusal:
    """Why a command about a subject is not put in force after a newer one about it."""
    return Refusal.because(
        "command.sequence",
        f"{kind} {id}",
        expected=f"a command newer than {newest}",
        found=sequence,
        action="a newer command about it is in force: look at it (attestgate enrolments list), and sign again",
    )
