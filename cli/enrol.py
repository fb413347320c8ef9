"""`attestgate enrol|revoke|recheck|measure`: an operator's commands for hosts, applications and gateways."""

from __future__ import annotations

import asyncio
import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from attestgate.bus.client.nats import join
from attestgate.bus.confirmations import Confirmations
from attestgate.bus.operator import OperatorKey, order
from attestgate.cli.common import Json, OperatorOption, checked, complain, operator_file, public_key, say, wrong
from attestgate.cli.processes import CodeOption
from attestgate.enclave.simulated.measure import CODE_ROOT, agent_manifest, measure
from attestgate.manager.local.keyfiles import read_identity
from attestgate.manager.verification.tpm.enrolment import enrolment as tpm_enrolment
from attestgate.manager.verification.tpm.enrolment import golden_from as golden_values
from attestgate.schemas.admission import ALL, READ_ONLY
from attestgate.schemas.base import Reason, Refusal, read_json
from attestgate.schemas.enrolment import (
    Action,
    AppEnrolment,
    Enrol,
    GatewayEnrolment,
    HostEnrolment,
    Placement,
    RecheckNow,
    Revoke,
)
from attestgate.schemas.settings import OperatorFile, load_measured
from attestgate.schemas.tpm import TpmAnswer, TpmEnrolment, TpmKept

enrol = typer.Typer(help="Enrol a host, an application or a gateway, or replace its enrolment.", no_args_is_help=True)
measurements = typer.Typer(help="Compute the measurement that an enclave will have.", no_args_is_help=True)
Mrenclaves = Annotated[
    list[str], typer.Option("--mrenclave", help="Allowed measurement; give two while an update rolls out.")
]


CONFIRMED_S = 5
"""How long a revocation may take until every gateway has confirmed it."""
SHORTHAND = {"all": ALL, "read-only": READ_ONLY}


class CertificateKey(StrEnum):
    """Where an application's private key is generated."""

    ENCLAVE = "enclave"
    MANAGER = "manager"


class Agent(StrEnum):
    """What can be revoked, blocked at a gateway, and rechecked."""

    HOST = "host"
    APP = "app"


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.add_typer(enrol, name="enrol")
    app.add_typer(measurements, name="measure")
    app.command("revoke")(revoke)
    app.command("recheck")(recheck)


def command(operator: Path, action: Action) -> None:
    """Send an operator's command, wait until it is applied, and print the result."""
    settings = operator_file(operator)
    operator_key = OperatorKey.of(settings, read_identity(settings.identity))

    async def send() -> None:
        async with await join(settings.bus) as bus:
            await order(bus, operator_key, action, settings.answer_s)
        say(f"{action.do}: applied")

    asyncio.run(send())


@enrol.command("host")
def enrol_host(
    id: str,
    mrenclave: Mrenclaves,
    platform: Annotated[str, typer.Option(help="The machine's PPID, salted: attestgate simulated ppid.")],
    operator: OperatorOption,
    tpm: Annotated[Path | None, typer.Option(help="Its TPM: the file that `tpm challenge --keep` wrote.")] = None,
    tpm_answer: Annotated[Path | None, typer.Option(help="The host's answer, from `tpm activate`.")] = None,
    golden_from: Annotated[
        list[Path] | None,
        typer.Option(help="Quote (TPMS_ATTEST) of a known-good boot; repeatable, such as for the next kernel's boot."),
    ] = None,
    tpm_pcrs: Annotated[
        list[Path] | None, typer.Option(help="That quote's PCR values, concatenated; one for each --golden-from.")
    ] = None,
) -> None:
    """Enrol a host: its agent's measurement, its machine, and the TPM that vouches for it.

    `attestgate tpm --help` describes how to make the TPM's files. Without --tpm its measurement list is unanchored.
    """
    golden = list(zip(golden_from or (), tpm_pcrs or (), strict=False))
    if len(golden_from or ()) != len(tpm_pcrs or ()) or (golden and tpm is None):
        raise wrong("--golden-from", "--tpm, and a --tpm-pcrs for each --golden-from", "not all of them")
    if (tpm is None) != (tpm_answer is None):
        raise wrong("--tpm", "--tpm and --tpm-answer together", "only one of them")
    pinned: TpmEnrolment | Literal["none"] = "none"
    if tpm is not None and tpm_answer is not None:
        boots = [golden_values(quote.read_bytes(), pcrs.read_bytes()) for quote, pcrs in golden]
        pinned = tpm_enrolment(read_json(TpmKept, tpm), read_json(TpmAnswer, tpm_answer), boots)
    subject = checked(HostEnrolment, id=id, mrenclaves=mrenclave, platform=platform, tpm=pinned)
    command(operator, Enrol(subject=subject))


@enrol.command("app")
def enrol_app(
    id: str,
    mrenclave: Mrenclaves,
    host: Annotated[
        list[str], typer.Option(help="Host it may run on, and its volume there: HOST or HOST:VOLUME. Repeatable.")
    ],
    allow: Annotated[
        list[str],
        typer.Option(
            help="What it may do at the controller: 'GET,POST /switches/**' (methods, then a path; /** is all below),"
            " read-only, or all. Repeatable; a request passes if any rule allows it."
        ),
    ],
    operator: OperatorOption,
    certificate_key: Annotated[
        CertificateKey, typer.Option(help="Where its private key is generated. At the manager is weaker, and marked.")
    ] = CertificateKey.ENCLAVE,
) -> None:
    """Enrol an application: its measurement, the hosts it may run on, and what it may do."""
    subject = checked(
        AppEnrolment,
        id=id,
        mrenclaves=mrenclave,
        placements=[_placement(text) for text in host],
        allow=[SHORTHAND.get(rule, rule) for rule in allow],
        certificate_key=certificate_key.value,
    )
    command(operator, Enrol(subject=subject))


@enrol.command("gateway")
def enrol_gateway(
    id: str,
    identity: Annotated[str, typer.Option(help="The gateway's public key, hexadecimal (public.json).")],
    operator: OperatorOption,
) -> None:
    """Enrol a gateway: the key that signs its reports."""
    key = public_key("--identity", identity)
    command(operator, Enrol(subject=checked(GatewayEnrolment, id=id, identity=key)))


def revoke(
    kind: Agent,
    id: str,
    reason: Annotated[str, typer.Option(help="Why; included in events and sent to the agent.")],
    operator: OperatorOption,
) -> None:
    """Revoke a host or an application now; it stays out until it is enrolled again.

    Waits until every gateway that your operator file names has confirmed that access there has ended.
    """
    settings = operator_file(operator)
    if missing := asyncio.run(_revoke(settings, checked(Revoke, kind=kind.value, id=id, reason=reason))):
        raise Refusal(*(_unconfirmed(gateway, kind.value, id) for gateway in missing))


async def _revoke(settings: OperatorFile, action: Revoke) -> list[str]:
    """Revoke, and print which gateways confirm it. Returns those that have not."""
    operator = OperatorKey.of(settings, read_identity(settings.identity))
    gateways = {gateway.id: bytes.fromhex(gateway.identity) for gateway in settings.gateways}
    confirmations = Confirmations(settings.trust_domain, gateways)
    async with await join(settings.bus) as bus, confirmations.heard(bus):
        begun = time.monotonic()
        revoke = (await order(bus, operator, action, settings.answer_s)).command
        say(f"{action.do}: applied")
        confirmed = await confirmations.of(revoke, until=max(begun + CONFIRMED_S, time.monotonic()))
    for gateway in gateways:
        if gateway in confirmed:
            say(f"{gateway}: out after {(confirmed[gateway] - begun) * 1000:.0f} ms")
        else:
            say(f"{gateway}: no confirmation in {CONFIRMED_S} s")
    if not gateways:
        complain("nobody confirms that access has ended: your operator file names no [[gateways]]")
    return [gateway for gateway in gateways if gateway not in confirmed]


def _unconfirmed(gateway: str, kind: str, id: str) -> Reason:
    return Reason(
        code="revoke.unconfirmed",
        field=gateway,
        expected=f"its signed confirmation within {CONFIRMED_S} s that {kind} {id} is out",
        found="no confirmation",
        action=f"see whether its worker and the bus run; to cut off {id} there without either, sign a file for its"
        f" block_folder: attestgate gateway block {kind} {id}",
    )


def recheck(kind: Agent, id: str, operator: OperatorOption) -> None:
    """Ask a host or an application for fresh evidence now."""
    command(operator, checked(RecheckNow, kind=kind.value, id=id))


@measurements.command("host")
def measure_host(measured: Path, code: CodeOption = CODE_ROOT, as_json: Json = False) -> None:
    """Print the measurement of the host agent with these measured settings."""
    _measure("host", measured, code, as_json)


@measurements.command("app")
def measure_app(measured: Path, code: CodeOption = CODE_ROOT, as_json: Json = False) -> None:
    """Print the measurement of an application's agent with these measured settings."""
    _measure("app", measured, code, as_json)


def _measure(kind: Literal["host", "app"], measured: Path, code: Path, as_json: bool) -> None:
    load_measured(measured)
    found = measure(agent_manifest(kind, code), code, measured)
    say(json.dumps(found.model_dump(mode="json"), indent=2) if as_json else found.mrenclave.hex())


def _placement(text: str) -> Placement:
    host, _, volume = text.partition(":")
    if not (volume or "0").isdecimal():
        raise wrong("--host", "HOST or HOST:VOLUME, where VOLUME is an index", text)
    return checked(Placement, host=host, volume=int(volume or "0"))
