"""`attestgate enrolments`: who is enrolled by whom, and the same under another operator's key."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.table import Table

from attestgate.bus.api import Bus
from attestgate.bus.client.nats import join
from attestgate.bus.layout import ENROLMENT
from attestgate.bus.operator import OperatorKey, order
from attestgate.cli.common import Json, OperatorOption, operator_file, say, screen
from attestgate.manager.local.keyfiles import read_identity
from attestgate.schemas.base import Refusal, pack, printable, unpack
from attestgate.schemas.enrolment import Action, AppEnrolment, Command, Enrol, GatewayEnrolment, HostEnrolment, Revoke
from attestgate.schemas.in_force import IN_FORCE, InForce, Standings, digest_of, place_of
from attestgate.schemas.settings import OperatorFile
from attestgate.schemas.signing import TrustedKeys

log = structlog.get_logger(__name__)
app = typer.Typer(help="List who is enrolled, by whom, and sign enrolments with another key.", no_args_is_help=True)


@dataclass(frozen=True)
class Listed:
    """An operator's newest command about a subject, as a manager put it in force. `key` is its signer, hexadecimal.

    `beside` are the commands of all operators about that subject, itself among them, by their SHA-256.
    """

    subject: str
    key: str
    said: InForce
    command: Command
    beside: list[bytes]

    def cells(self) -> tuple[str, str, str, str, str]:
        """A row of the table."""
        when = datetime.fromtimestamp(self.said.applied_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return self.subject, _said(self.command.action), when, self.said.operator, self.key[:16]


def _said(action: Action) -> str:
    """What a command makes of its subject, in a line."""
    match action:
        case Revoke():
            return f"revoked: {action.reason}"
        case Enrol(subject=HostEnrolment() as host):
            anchored = "with its TPM" if host.enrolled_tpm else "without TPM"
            return f"{_short(host.mrenclaves)} on {host.platform[:16]}, {anchored}"
        case Enrol(subject=AppEnrolment() as app):
            hosts = ", ".join(place.host for place in app.placements)
            return f"{_short(app.mrenclaves)} on {hosts}: {'; '.join(app.allow) or 'no request'}"
        case Enrol(subject=GatewayEnrolment() as gateway):
            return f"identity {gateway.identity.hex()[:16]}"
        case _:
            raise AssertionError(f"{action.do} enrols nobody")


def _short(mrenclaves: list[str]) -> str:
    return f"mrenclave {' or '.join(one[:16] for one in mrenclaves)}"


@app.command("list")
def list_all(operator: OperatorOption, as_json: Json = False) -> None:
    """List the newest command about each subject: what it says, since when, whose it is, by which key."""
    found = _newest(asyncio.run(_read(operator)), ())
    if as_json:
        rows = [dict(zip(("subject", "what", "since", "operator", "key"), one.cells(), strict=True)) for one in found]
        say(json.dumps(rows, indent=2))
    else:
        screen().print(_table(found) if found else "nobody is enrolled")


@app.command("resign")
def resign(
    operator: OperatorOption,
    key: Annotated[Path | None, typer.Option(help="The key that signs, in place of your operator file's.")] = None,
    signed_by: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="KEY", help="Only what this key has signed. Repeatable."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="As if this key, a stolen one, had signed nothing. Repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without being asked.")] = False,
) -> None:
    """Sign with your key what other operators' keys have signed, before one of them is taken out of the settings.

    What a key has signed ends with it. Lists what is to be signed, and whose it was, before anything is signed.
    Keys are named by their first 8 digits or more, as `enrolments list` shows them.
    """
    left_out, chosen = _prefixes(without), _prefixes(signed_by)
    settings = operator_file(operator)
    own = OperatorKey.of(settings, read_identity(key or settings.identity))
    newest = _newest(asyncio.run(_read(operator)), left_out)
    mine = own.signer.public.hex()
    found = [one for one in newest if (one.key.startswith(chosen) if chosen else one.key != mine)]
    if not found:
        say("nothing to sign")
        return
    screen().print(_table(found))
    if not yes:
        typer.confirm(f"Sign these {len(found)} with key {mine[:16]}?", abort=True)
    asyncio.run(_sign(settings, own, found))


async def _sign(settings: OperatorFile, own: OperatorKey, found: list[Listed]) -> None:
    """Order each again, as its newest command says. Raises Refusal, BusError."""
    async with await join(settings.bus) as bus:
        for one in found:
            # By a list of the bus: if it is an older one, what a manager knows of the subject is not on it.
            await order(bus, own, one.command.action, settings.answer_s, one.beside)
            say(f"{one.subject}: signed")


async def _read(operator: Path) -> list[Listed]:
    """Every operator's newest command about each subject. Raises Refusal, BusError."""
    settings = operator_file(operator)
    async with await join(settings.bus) as bus:
        return await _present(bus, settings.managers)


async def _present(bus: Bus, managers: TrustedKeys) -> list[Listed]:
    found: list[Listed] = []
    async with aclosing(bus.bucket(ENROLMENT.name).watch()) as changes:  # type: ignore[type-var]
        async for entry in changes:
            if entry is None:
                break
            if entry.value is None:
                continue
            try:
                found += _enrolled(entry.key, entry.value, managers)
            except Refusal as refusal:
                log.warning("not shown", key=entry.key, reason=refusal.reasons[0].sentence())
    return found


def _enrolled(key: str, value: bytes, managers: TrustedKeys) -> list[Listed]:
    """What managers have put in force under a key. Raises Refusal."""
    found: list[Listed] = []
    beside: list[bytes] = []
    for standing in unpack(Standings, value).standing:
        said = managers.read(IN_FORCE, standing.in_force, place_of(ENROLMENT.name, key))
        # A manager has checked whose it is: whose keys count stands in the managers' settings.
        if said.statement == digest_of(pack(standing.statement)):
            command = unpack(Command, standing.statement.payload)
            beside.append(said.statement)
            found.append(Listed(key, standing.statement.signer.hex(), said, command, beside))
    return found


def _newest(found: list[Listed], without: tuple[str, ...]) -> list[Listed]:
    """Of each subject the newest, leaving out what some keys have signed."""
    newest: dict[str, Listed] = {}
    for one in found:
        if not (without and one.key.startswith(without)):
            before = newest.get(one.subject)
            newest[one.subject] = one if before is None or before.said.order < one.said.order else before
    return [newest[subject] for subject in sorted(newest)]


def _prefixes(keys: list[str] | None) -> tuple[str, ...]:
    for key in keys or ():
        if len(key) < 8 or not set(key) <= set("0123456789abcdef"):
            raise Refusal.because(
                "cli.argument",
                "KEY",
                expected="8 hexadecimal digits of a public key, or more",
                found=key,
                action="see: attestgate enrolments list",
            )
    return tuple(keys or ())


def _table(found: list[Listed]) -> Table:
    table = Table("subject", "what", "since", "by", "key", box=None, pad_edge=False)
    for one in found:
        table.add_row(*map(printable, one.cells()))
    return table
