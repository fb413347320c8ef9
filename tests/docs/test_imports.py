"""Who may import what of the tests: what more than one folder uses is in tests/support, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestgate.cli.reference import DOCS

ROOT = DOCS.parent
FILES = sorted(path.relative_to(ROOT) for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imported(source: str, of: str) -> Iterator[str]:
    """The modules of tests and bench that a module's source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(of.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            names = [whole if (whole := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("tests", "bench"))


def forbidden(by: str, module: str) -> str | None:
    """Why one module may not import another; None if it may."""
    top, *_, last = module.split(".")
    if last.startswith("test_"):
        return "a test module is nobody's library: what is shared goes to tests/support"
    if last == "conftest":
        return "a conftest's fixtures come by name; what is shared goes to tests/support"
    if by.startswith("bench.") and top == "tests" and not module.startswith("tests.support."):
        return "a benchmark uses tests/support and nothing else of the tests"
    if by.startswith("tests.") and top == "bench":
        return "a test does not use a benchmark"
    if by.startswith("tests.support.") and not module.startswith("tests.support"):
        return "tests/support uses nothing of the tests but itself"
    if by.split(".")[:2] != module.split(".")[:2] and not module.startswith("tests.support.") and top != "bench":
        return "another folder's module: what is shared goes to tests/support"
    return None


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_only_what_is_there_to_be_shared(path: Path) -> None:
    by = module_of(path)
    found = {module: forbidden(by, module) for module in imported((ROOT / path).read_text(encoding="utf-8"), by)}
    assert {module: why for module, why in found.items() if why} == {}


@pytest.mark.parametrize(
    ("by", "statement", "module"),
    [
        ("tests.ima.test_a", "from tests.ima.test_list import x", "tests.ima.test_list"),
        ("tests.ima.test_a", "from tests.ima import test_list", "tests.ima.test_list"),
        ("tests.ima.test_a", "from . import test_list", "tests.ima.test_list"),
        ("tests.ima.test_a", "from .test_list import x", "tests.ima.test_list"),
        ("tests.ima.test_a", "def f():\n    import tests.bus.conftest", "tests.bus.conftest"),
        ("tests.ima.test_a", "from .conftest import site", "tests.ima.conftest"),
        ("tests.ima.test_a", "from bench.bus import rate", "bench.bus"),
        ("tests.ima.test_a", "from tests.story.secrets import forms", "tests.story.secrets"),
        ("tests.support.ima.lists", "from tests.crash import worker", "tests.crash.worker"),
        ("bench.ima", "from tests.crash import worker", "tests.crash.worker"),
    ],
)
def test_an_import_that_breaks_the_rule_is_seen(by: str, statement: str, module: str) -> None:
    assert list(imported(statement, by)) == [module]
    assert forbidden(by, module) is not None
