"""The command `attestgate`. Each group of sub-commands is a module beside this one; none holds logic of its own."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from attestgate.bus.api import BusError
from attestgate.cli import (
    config,
    demo,
    doctor,
    enrol,
    enrolments,
    events,
    gateway,
    inspect,
    keys,
    log,
    policy,
    policy_set,
    processes,
    quarantine,
    simulated,
    tpm,
    verify,
    watch,
)
from attestgate.cli.common import INTERRUPTED, REFUSED, WRONG, complain, inaccessible
from attestgate.cli.exec import run_exec
from attestgate.cli.verify_ima import ImaCommand, verify_ima
from attestgate.enclave.api import EnclaveError
from attestgate.schemas.base import Refusal

app = typer.Typer(
    name="attestgate",
    help="Admit an application to an SDN controller only while its code, enclave, host and key are attested.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("attestgate"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the installed version and exit."),
    ] = False,
) -> None:
    """Options of the command itself; the help text is the application's."""


demo.register(app)
doctor.register(app)
app.add_typer(processes.manager, name="manager")
gateway.register(processes.gateway)
app.add_typer(processes.gateway, name="gateway")
app.add_typer(processes.host, name="host")
processes.application.command("exec")(run_exec)
app.add_typer(processes.application, name="app")
watch.register(app)
enrol.register(app)
app.add_typer(enrolments.app, name="enrolments")
policy_set.register(policy.app)
app.add_typer(policy.app, name="policy")
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")
app.add_typer(events.app, name="events")
app.add_typer(log.app, name="log")
verify.app.command("ima", cls=ImaCommand)(verify_ima)
app.add_typer(verify.app, name="verify")
app.add_typer(inspect.app, name="inspect")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(simulated.app, name="simulated")
app.add_typer(tpm.app, name="tpm")

WRONG_INPUT = (
    *("settings.", "file.", "keys.", "credentials.", "cli."),
    *("pki.folder", "pki.load", "pki.names", "pki.trust_domain", "policy.key", "simulated.exists"),
)
"""Reasons for which a file or an argument has to be corrected."""


def run() -> None:
    """Entry point. Exit codes: 0 done, 1 refused or unreachable, 2 invalid arguments or settings, 130 Ctrl-C."""
    try:
        app()
    except Refusal as refusal:
        for reason in refusal.reasons:
            complain(reason.sentence())
        sys.exit(WRONG if refusal.reasons[0].code.startswith(WRONG_INPUT) else REFUSED)
    except (BusError, EnclaveError) as error:
        complain(str(error))
        sys.exit(REFUSED)
    except OSError as error:
        complain(inaccessible(error).sentence())
        sys.exit(WRONG)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
