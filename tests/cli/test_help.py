"""Every command explains itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
import typer.main

from attestgate.cli.main import app
from tests.support.cli.fixtures import Run


def _commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, *path, name)


COMMANDS = dict(_commands(typer.main.get_command(app)))  # type: ignore[arg-type]
MEANT = {
    "demo", "up", "manager run", "gateway run", "host run", "app run", "sessions", "hosts", "apps", "explain",
    "revoke", "recheck", "enrol host", "enrol app", "enrol gateway", "measure host", "measure app", "policy learn",
    "policy sign", "keys init", "keys credentials", "verify quote", "verify ima", "verify ias", "inspect quote",
    "simulated machine", "simulated pccs",
}  # fmt: skip


def test_the_commands_are_all_there() -> None:
    assert {" ".join(path) for path in COMMANDS} >= MEANT


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "attestgate")
def test_help_teaches(attestgate: Run, path: tuple[str, ...]) -> None:
    ran = attestgate(*path, "--help")
    assert (ran.status, ran.err) == (0, "")
    said = " ".join(ran.out.split())
    command = COMMANDS[path]
    about = " ".join((command.help or "").split())
    children = getattr(command, "commands", {})
    assert len(about.split()) >= (2 if children else 3) and about in said
    for name, child in children.items():
        assert name in said and child.get_short_help_str(1000)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "attestgate")
def test_every_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    options = [p for p in COMMANDS[path].params if getattr(p, "help", None) is None and p.param_type_name == "option"]
    assert [option.name for option in options] == []


@pytest.mark.parametrize("path", [path for path in COMMANDS if getattr(COMMANDS[path], "commands", None)])
def test_a_group_alone_shows_its_help(attestgate: Run, path: tuple[str, ...]) -> None:
    ran = attestgate(*path)
    assert ran.status == 2 and "Usage:" in ran.out + ran.err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["demo", "--nonsense"], ["enrol", "host"], ["revoke", "vm", "x", "--reason", "r"], ["explain"]],
    ids=" ".join,
)
def test_wrong_use_is_said_and_exits_2(attestgate: Run, arguments: list[str]) -> None:
    ran = attestgate(*arguments)
    assert ran.status == 2 and ran.out == "" and "Usage:" in ran.err and "Traceback" not in ran.err


def test_version_is_that_of_the_installed_package(attestgate: Run) -> None:
    ran = attestgate("--version")
    assert (ran.status, ran.out, ran.err) == (0, f"{version('attestgate')}\n", "")
