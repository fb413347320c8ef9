"""The tables, made of the rows and of the marks in the tests' syntax trees: no test module is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill
from typing import NamedTuple, TypeGuard

from tests.support.threats import rows
from tests.support.threats.row import Adversary, Row

TESTS = Path(__file__).resolve().parents[2]
PAGE = TESTS.parent / "docs" / "threats.md"
BEGIN = "<!-- Made by `python -m tests.support.threats` from tests/support/threats/rows.py. -->\n\n"
END = "<!-- End of what is made. -->\n"
NEVER_RUN = {"skip", "xfail"}
"""Marks of a test that shows nothing."""

ROWS = {name: row for name, row in vars(rows).items() if isinstance(row, Row)}
ADVERSARIES = [value for value in vars(rows).values() if isinstance(value, Adversary)]


class Mark(NamedTuple):
    """A row that a test shows: the row's name, the file below tests/ without `.py`, the test ("" for a whole file)."""

    row: str
    file: str
    test: str


class WrongMark(Exception):
    """A mark that is on no test, or that does not name a row."""


def marks(file: str, source: str) -> Iterator[Mark]:
    """The marks in a test module. Raises WrongMark."""
    tree = ast.parse(source)
    left = {id(call): call for call in ast.walk(tree) if _is_mark(call)}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
                on, test = node.decorator_list, name
                if left.keys() & set(map(id, on)) and NEVER_RUN & {_last(decorator) for decorator in on}:
                    raise WrongMark(f"{file}: {test} never runs")
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                on, test = value.elts if isinstance(value, ast.List) else [value], ""
            case _:
                continue
        for call in filter(_is_mark, on):
            del left[id(call)]
            for named in call.args:
                match named:
                    case ast.Attribute(value=ast.Name(id="rows"), attr=row) if row in ROWS:
                        yield Mark(row, file, test)
                    case _:
                        raise WrongMark(f"{file}: {test}: {ast.unparse(named)} is no row")
    if left:
        raise WrongMark(f"{file}: a mark that is on no test, in line {next(iter(left.values())).lineno}")


def _is_mark(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "threat"


def _last(decorator: ast.expr) -> str:
    """The last name of a decorator: `skip` of `@pytest.mark.skip(reason=…)`."""
    said = decorator.func if isinstance(decorator, ast.Call) else decorator
    return said.attr if isinstance(said, ast.Attribute) else ""


def all_marks() -> list[Mark]:
    """Those of every test module. Raises WrongMark."""
    files = sorted(path for path in TESTS.rglob("test_*.py"))
    return [
        mark
        for path in files
        for mark in marks(path.relative_to(TESTS).with_suffix("").as_posix(), path.read_text(encoding="utf-8"))
    ]


def tables(found: Iterable[Mark]) -> str:
    """A table for each adversary."""
    by_row: dict[str, list[Mark]] = {name: [] for name in ROWS}
    for mark in found:
        by_row[mark.row].append(mark)
    return "".join(_table(adversary, by_row) for adversary in ADVERSARIES)


def _table(adversary: Adversary, by_row: dict[str, list[Mark]]) -> str:
    first = "whose | " if adversary.roles else ""
    lines = [
        f"## {adversary.name}",
        "",
        fill(adversary.has, 120, break_long_words=False, break_on_hyphens=False),
        "",
        f"| {first}attack | what prevents it | tests |",
        f"| {'--- | ' * (4 if adversary.roles else 3)}".rstrip(),
    ]
    for name, row in ROWS.items():
        if row.by is adversary:
            whose = f"{row.role} | " if adversary.roles else ""
            lines.append(f"| {whose}{row.attack} | {_prevention(row)} | {_tests(by_row[name])} |")
    return "\n".join([*lines, "", ""])


def _prevention(row: Row) -> str:
    premise = row.premise and f"*Premise: {row.premise}.*"
    left = row.left and f"**Not prevented:** {row.left}"
    return " ".join(filter(None, (row.prevention, premise, left)))


def _tests(found: list[Mark]) -> str:
    files: dict[str, list[str]] = {}
    for mark in sorted(found):
        files.setdefault(mark.file, []).append(mark.test)
    return "; ".join(f"[{file}](../tests/{file}.py){_functions(tests)}" for file, tests in files.items())


def _functions(tests: list[str]) -> str:
    named = [f"`{test}`" for test in tests if test]
    return f": {', '.join(named)}" if "" not in tests else ""


def page(old: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables(all_marks()) + END + after
