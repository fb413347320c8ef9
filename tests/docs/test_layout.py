"""The layout of CONTRIBUTING.md: imports go one way, no folders import each other in a circle, verifiers are pure."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from attestgate.cli.reference import DOCS

ROOT = DOCS.parent
MAY: dict[str, set[str]] = {
    "schemas": set(),
    "bus": {"schemas"},
    "enclave": {"schemas"},
    "host_agent": {"schemas", "bus", "enclave"},
    "app_agent": {"schemas", "bus", "enclave"},
    "manager": {"schemas", "bus"},
    "compose": {"schemas", "bus", "enclave", "host_agent", "app_agent", "manager"},
    "cli": {"schemas", "bus", "enclave", "host_agent", "app_agent", "manager", "compose"},
}
"""For each top-level folder, the others that it may import."""
WORLD = {"asyncio", "httpx", "nats", "os", "random", "requests", "secrets", "socket", "subprocess", "time"}
"""Modules by which a verifier would reach outside its arguments."""
DRAWS = {("manager/verification/tpm/credential.py", "secrets"), ("manager/verification/tpm/enrolment.py", "secrets")}
"""Not verifiers: they make the challenge that a TPM is enrolled by, with a seed and a secret of their own."""


def files(top: str) -> list[Path]:
    return sorted((ROOT / top).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """What a file imports, as dotted names: of attestgate down to modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(name: str) -> str | None:
    """The folder of what a dotted name of attestgate leads to; None of others."""
    first, *parts = name.split(".")
    if first != "attestgate":
        return None
    path = ROOT
    for part in parts:
        if not (path / part).is_dir():
            break
        path /= part
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("top", MAY)
def test_imports_go_one_way(top: str) -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), folder)
        for path in files(top)
        for name in imported(path)
        if (folder := folder_of(name)) is not None and folder.split("/")[0] not in {top, "."} | MAY[top]
    }
    assert found == set()


def test_no_folders_import_each_other_in_a_circle() -> None:
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for top in MAY:
        for path in files(top):
            own = path.parent.relative_to(ROOT).as_posix()
            folders[own] |= {folder for name in imported(path) if (folder := folder_of(name))} - {own, "."}
    assert len(folders) > len(MAY)
    try:
        TopologicalSorter(folders).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", files("manager/verification"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_verifiers_are_given_all_that_they_use(path: Path) -> None:
    names = set(imported(path))
    own = path.relative_to(ROOT).as_posix()
    outside = {(own, name.split(".")[0]) for name in names if name.split(".")[0] in WORLD}
    assert outside - DRAWS == set()
    mine = {folder for name in names if (folder := folder_of(name)) is not None}
    allowed = ("schemas", "manager/verification")
    assert {folder for folder in mine if not folder.startswith(allowed)} <= {"."}
