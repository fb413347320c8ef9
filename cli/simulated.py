"""`attestgate simulated`: software stand-ins for an SGX machine and its attestation service. Never for production."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from attestgate.bus.lifetime import until_told
from attestgate.cli.common import LogFormat, LogOption, say, set_up_logs
from attestgate.cli.processes import CodeOption
from attestgate.compose.sdn import controller
from attestgate.enclave.simulated import authority as authorities
from attestgate.enclave.simulated import daemon, pccs, platform, signer
from attestgate.enclave.simulated.launcher import launch
from attestgate.enclave.simulated.measure import CODE_ROOT
from attestgate.manager.local.keyfiles import read_secret
from attestgate.schemas.base import Refusal
from attestgate.schemas.sgx import PlatformIdentity

app = typer.Typer(
    help="Run software stand-ins for SGX hardware and its attestation service. Everything they vouch for says"
    " `simulated`; a production profile refuses it.",
    no_args_is_help=True,
)
AuthorityOption = Annotated[Path, typer.Option("--authority", help="Folder of the simulated root of trust.")]


@app.command("authority")
def create_authority(folder: Path) -> None:
    """Create a simulated root of trust: root CA, PCK CAs, TCB info, QE identity, CRLs."""
    with _made(folder):
        authorities.create(folder)
    say(f"root certificate for attestation.root: {folder / 'root.pem'}")


@app.command("signer")
def create_signer(file: Path) -> None:
    """Create the key that signs enclaves (it determines MRSIGNER)."""
    with _made(file):
        signer.create(file)


@app.command("platform")
def create_platform(folder: Path, authority: AuthorityOption) -> None:
    """Create a simulated machine, certified by an authority."""
    with _made(folder):
        platform.create(folder, authority)


@app.command("ppid")
def show_ppid(
    folder: Path, salt: Annotated[Path, typer.Option(help="The deployment's salt (keys: manager/salt).")]
) -> None:
    """Print a simulated machine's platform identity, salted, for `attestgate enrol host --platform`."""
    facts = platform.read_facts(folder)
    nothing = b""
    identity = PlatformIdentity.salted(
        read_secret(salt).reveal(), ppid=facts.pck.ppid, pck_leaf=nothing, attestation_key=nothing, qe_id=nothing
    )
    say(identity.ppid)


@app.command("machine")
def run_machine(
    folder: Path,
    socket: Annotated[Path, typer.Option(help="Unix socket to listen on.")],
    signer_key: Annotated[Path, typer.Option("--signer", help="The key that signs enclaves.")],
    log: LogOption = LogFormat.JSON,
) -> None:
    """Run a simulated machine until Ctrl-C: it launches enclaves, measures them, quotes and seals for them."""
    set_up_logs(log)
    until_told(daemon.serve(folder, socket, signer_key, lambda: say("ready")))


@app.command("launch")
def launch_enclave(
    socket: Annotated[Path, typer.Option(help="A simulated machine's socket.")],
    manifest: Annotated[Path, typer.Option(help="The enclave's manifest (enclave.toml).")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments for the program in the enclave.")] = None,
    measured: Annotated[Path | None, typer.Option(help="Its measured settings.")] = None,
    code: CodeOption = CODE_ROOT,
) -> None:
    """Run any enclave on a simulated machine until it ends."""
    sys.exit(launch(socket, manifest, code, measured, arguments or []))


@app.command("controller")
def run_controller(
    socket: Annotated[Path, typer.Option(help="Unix socket to listen on, for nginx alone.")],
) -> None:
    """Run a small SDN controller (switches and flows over REST) until Ctrl-C, to try the gateway with."""
    set_up_logs(LogFormat.JSON)
    with _made(socket):
        until_told(controller.serve(socket, ready=lambda: say("ready")))


@app.command("sdn")
def run_sdn(
    socket: Annotated[Path, typer.Option(help="Unix socket to listen on, for nginx alone.")],
    openflow: Annotated[int, typer.Option(help="Port for the switches.")],
    address: Annotated[str, typer.Option(help="Address for the switches; not loopback in a container.")] = (
        "127.0.0.1"
    ),
    name: Annotated[list[str], typer.Option(help="A switch's name: NAME=DATAPATH_ID (hexadecimal).")] = [],  # noqa: B006
) -> None:
    """Run os-ken with a small northbound until Ctrl-C, for real switches. Needs requirements-sdn.lock."""
    try:
        from attestgate.compose.sdn import northbound
    except ImportError as error:
        raise Refusal.because(
            "sdn.missing",
            "os-ken",
            expected="the packages of requirements-sdn.lock",
            found=str(error.name),
            action="pip install --no-deps --require-hashes -r requirements-sdn.lock",
        ) from None
    set_up_logs(LogFormat.JSON)
    names = {text.partition("=")[0]: int(text.partition("=")[2], 16) for text in name}
    until_told(northbound.run(socket, (address, openflow), names, ready=lambda: say("ready")))
    os._exit(0)  # nothing stops os-ken's listening threads


@app.command("pccs")
def run_pccs(
    authority: AuthorityOption,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 0,
    address: Annotated[str, typer.Option(help="Address to listen on; not loopback in a container.")] = ("127.0.0.1"),
    log: LogOption = LogFormat.JSON,
) -> None:
    """Run the attestation service (PCCS, Intel's v4 API) until Ctrl-C."""
    set_up_logs(log)
    try:
        until_told(pccs.serve(authority, address, port, lambda url: say(f"ready {url}")))
    except OSError as error:
        raise Refusal.because(
            "pccs.port",
            f"{address}:{port}",
            expected="a free port",
            found=error.strerror,
            action="choose another port, or 0 for a free one",
        ) from None


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Name the path that could not be created. Raises Refusal `file.write`."""
    try:
        yield
    except OSError as error:
        raise Refusal.because(
            "file.write",
            str(path),
            expected="a path that can be created",
            found=error.strerror or error,
            action="check the parent folder and its permissions",
        ) from None
