"""`attestgate gateway config|certificate|break-glass|block|floors`: what a gateway needs, and operators' files."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.bus.operator import VALID_S
from attestgate.cli import gateway_floors
from attestgate.cli.common import SettingsFile, checked, complain, say, wrong
from attestgate.cli.enrol import SHORTHAND, Agent
from attestgate.compose.nginx.process import Nginx, render
from attestgate.manager.local.atomic_file import atomic_write
from attestgate.manager.local.keyfiles import read_identity, read_secret, write_private
from attestgate.manager.pki.authority import load_authority
from attestgate.manager.pki.issue import issue_server
from attestgate.schemas.admission import serial_hex
from attestgate.schemas.base import pack
from attestgate.schemas.break_glass import BREAK_GLASS, BreakGlass, at_gateways
from attestgate.schemas.enrolment import COMMAND, Command, Revoke, commands_of
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.settings import ManagerSettings, OperatorFile, load_settings
from attestgate.schemas.settings_file import load_part
from attestgate.schemas.signing import Signer

_SPANS = {"s": 1, "m": 60, "h": 3600}


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.command("config")(config)
    app.command("certificate")(certificate)
    app.command("break-glass")(break_glass)
    app.command("block")(block)
    app.add_typer(gateway_floors.app, name="floors")


def config(
    file: Annotated[Path, typer.Argument(help="nginx's settings (TOML): folder, port, certificate, key, …")],
    check: Annotated[bool, typer.Option(help="Also have nginx check it (nginx -t).")] = False,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
) -> None:
    """Render the configuration of a gateway's nginx from its settings."""
    settings = load_part(NginxConfig, file)
    if check:
        asyncio.run(Nginx(settings).check())
        complain("nginx accepts this configuration")
    text = render(settings)
    if out is None:
        say(text)
    else:
        out.write_text(text, encoding="utf-8")


def certificate(
    settings: SettingsFile,
    name: Annotated[list[str], typer.Option(help="A name or address that the agents know the gateway by; repeatable.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for server.pem and server.key; existing ones are refused.")
    ],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is valid.")] = 90,
) -> None:
    """Issue a gateway's server certificate under the deployment's CA, with a new key. Needs a manager's settings.

    Agents check it against `gateway_ca` and `gateway_name` of their measured settings.
    """
    manager = load_settings(ManagerSettings, settings)
    authority = load_authority(manager.pki, read_secret(manager.pki_passphrase))
    server = issue_server(authority, names=name, lifetime_s=days * 86400, at=int(time.time()))
    out.mkdir(parents=True, exist_ok=True)
    write_private(out / "server.key", server.key.reveal())
    (out / "server.pem").write_text(server.chain, encoding="ascii")
    say(f"wrote {out / 'server.pem'} for {', '.join(name)}, and its key; move both into place and reload nginx")


def break_glass(
    certificate: Annotated[Path, typer.Argument(help="The application's certificate (PEM).")],
    gateways: Annotated[str, typer.Option(help="The set of gateways it is for.")],
    span: Annotated[str, typer.Option("--for", help="Validity: 90s, 15m, 1h.")],
    reason: Annotated[str, typer.Option(help="Why; included in an event of every gateway that accepts it.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The file to write, ending in .glass.")],
    operator: Annotated[Path, typer.Option("--operator", "-O", envvar="ATTESTGATE_OPERATOR", help="Operator file.")],
    allow: Annotated[list[str], typer.Option(help="What it may do, as for `enrol app`.")],
) -> None:
    """Sign an admission for one certificate, for when managers or the bus are down. Contacts neither.

    Copy the file into the folder that the gateway's settings name under [break_glass], at each gateway. It must be
    accepted there before it expires, cannot override a withdrawal, and is reported as an alarm.
    """
    settings = load_settings(OperatorFile, operator)
    leaf = _certificate(certificate)
    now = int(time.time())
    said = checked(
        BreakGlass,
        operator=settings.name,
        serial=serial_hex(leaf.serial_number),
        certificate=hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest(),
        identity=_identity(leaf),
        allow=[SHORTHAND.get(rule, rule) for rule in allow],
        issued_at=now,
        expires_at=now + _seconds(span),
        reason=reason,
    )
    signer = Signer(settings.trust_domain, read_identity(settings.identity))
    out.write_bytes(pack(signer.sign(BREAK_GLASS, at_gateways(gateways), said)))
    say(f"{said.identity} may pass {gateways} for {span}, until {said.expires_at}, once {out} is at the gateway")


def block(
    kind: Annotated[Agent, typer.Argument(help="What it is.")],
    id: Annotated[str, typer.Argument(help="Its id, as enrolled.")],
    reason: Annotated[str, typer.Option(help="Why; included in an event of every gateway that reads it.")],
    operator: Annotated[Path, typer.Option("--operator", "-O", envvar="ATTESTGATE_OPERATOR", help="Operator file.")],
    out: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write, ending in .revoke.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Instead of -o: the folder of a gateway (`block_folder` of its settings).")
    ] = None,
) -> None:
    """Sign a Revoke of a host or an application and write it into a file. Contacts neither managers nor bus.

    It cuts at once at each gateway where the file is put into the folder, and stays in force there, file or not, until
    the subject is enrolled again. Its order is this machine's clock: it must not be behind that of the last enrolment.
    """
    if (out is None) == (folder is None):
        raise wrong("--output", "either --output or --folder", "both" if out else "neither")
    settings = load_settings(OperatorFile, operator)
    now = time.time()
    action = checked(Revoke, kind=kind.value, id=id, reason=reason)
    command = Command(sequence=int(now * 1_000_000), expires_at=int(now) + VALID_S, action=action)
    signer = Signer(settings.trust_domain, read_identity(settings.identity))
    data = pack(signer.sign(COMMAND, commands_of(settings.name), command))
    path = out or (folder or Path()) / f"{kind.value}-{id}-{command.sequence}.revoke"
    try:
        atomic_write(path, data)
        path.chmod(0o644)
    except OSError as error:
        raise wrong("--output", "a file that can be written", error.strerror) from None
    say(f"{kind.value} {id} is cut at each gateway where {path.name} is in the folder")


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise wrong("certificate", "a certificate in PEM", getattr(error, "strerror", None) or error) from None


def _identity(leaf: x509.Certificate) -> str:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    except (x509.ExtensionNotFound, IndexError):
        raise wrong("certificate", "a certificate with a spiffe:// name", "no spiffe:// name") from None


def _seconds(span: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([smh])", span)
    if match is None:
        raise wrong("--for", "a number followed by s, m or h", span)
    return int(match[1]) * _SPANS[match[2]]
