"""The demo's adversary on the bus itself: it holds what is stored there, and sets it back."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from attestgate.bus.api import Bus
from attestgate.bus.client.nats import connect
from attestgate.bus.layout import ADMISSIONS, ENROLMENT, SESSIONS
from attestgate.compose.demo.narrator import Narrator
from attestgate.compose.local.plan import GATEWAY
from attestgate.compose.local.stack import Stack
from attestgate.schemas.admission import REVOKE
from attestgate.schemas.enrolment import RecheckNow
from attestgate.schemas.events import Event, reason_of, reasons_of

FORGETFUL = "manager-2"
"""A worker that has seen nothing of what happened before it was started."""


@dataclass(frozen=True)
class Kept:
    """What the bus held of an application while it was admitted: values by bucket and key."""

    app: str
    values: dict[tuple[str, str], bytes]

    async def put_back(self, bus: Bus, bucket: str) -> None:
        """Put what one bucket held back into it."""
        for (where, key), value in self.values.items():
            if where == bucket:
                await bus.bucket(bucket).put(key, value)


async def keep(stack: Stack, admitted: Event) -> Kept:
    """The bus's operator keeps an application's record, lease and enrolment as they are while it is admitted."""
    app = admitted.subject
    keys = {
        (SESSIONS.name, f"app.{admitted.session}"),
        (ADMISSIONS.name, f"cert.{admitted.data['serial']}"),
        (ENROLMENT.name, f"app.{app}"),
    }
    bus = await _operated(stack)
    try:
        entries = {(bucket, key): await bus.bucket(bucket).get(key) for bucket, key in keys}
    finally:
        await bus.close()
    return Kept(app, {where: entry.value for where, entry in entries.items() if entry and entry.value})


async def old_record(stack: Stack, narrator: Narrator, kept: Kept) -> None:
    """The record and the lease of a session that was revoked, as they were while it was admitted."""
    narrator.scene("The bus puts back the record and the lease that the revoked session had")
    mark = stack.events.mark
    bus = await _operated(stack)
    try:
        await kept.put_back(bus, SESSIONS.name)
        await kept.put_back(bus, ADMISSIONS.name)
    finally:
        await bus.close()
    at_gateway = await stack.until("gateway", GATEWAY, "refused", since=mark)
    narrator.refused("the old lease, at the gateway", [reason_of(at_gateway.data["reason"])], "admission.")
    await stack.order(RecheckNow(kind="app", id=kept.app))
    at_manager = await stack.until("manager", "manager", "record-rolled-back", since=mark)
    narrator.refused("the old record, at the manager", reasons_of(at_manager), "record.rollback")
    _stays_out(stack, narrator, kept.app)


async def hidden_revocation(stack: Stack, narrator: Narrator, kept: Kept) -> None:
    """A revocation that one worker applied, hidden from another, which is given everything from now on."""
    narrator.scene("The bus hides the revocation from another manager worker, and gives that one all messages")
    await stack.manager.stop()
    bus = await _operated(stack)
    try:
        await kept.put_back(bus, ENROLMENT.name)
        for key in await bus.bucket(ADMISSIONS.name).keys(f"{REVOKE}>"):
            await bus.bucket(ADMISSIONS.name).delete(key)
    finally:
        await bus.close()
    settings = tomllib.loads(stack.plan.settings("manager").read_text(encoding="utf-8"))
    own = {"name": FORGETFUL, "state_dir": str(stack.plan.folder / "state" / FORGETFUL)}
    stack.plan.write(FORGETFUL, settings | own)
    mark = stack.events.mark
    await stack.start_manager(FORGETFUL, FORGETFUL)
    certified = await stack.until("app", kept.app, "certified", since=mark)
    narrator.check(f"{FORGETFUL} believes the bus, and certifies {kept.app}", certified.source.endswith(FORGETFUL))
    refused = await stack.until("gateway", GATEWAY, "refused", since=mark)
    narrator.refused("its lease, at the gateway", [reason_of(refused.data["reason"])], "admission.revoked")
    await stack.until("app", kept.app, "revoked", since=mark)
    hello = await stack.until("app", kept.app, "dropped", since=mark)
    narrator.refused(f"{kept.app}'s next hello, once {FORGETFUL} knows", reasons_of(hello), "enrolment.revoked")
    _stays_out(stack, narrator, kept.app)


def _stays_out(stack: Stack, narrator: Narrator, app: str) -> None:
    narrator.check(f"{app} stays out", stack.last_status(app) == 403, found=stack.last_status(app))


async def _operated(stack: Stack) -> Bus:
    """A connection of the bus's operator, who may do there what a manager may."""
    return await connect([stack.server.url], stack.plan.credentials("manager", "manager"))
