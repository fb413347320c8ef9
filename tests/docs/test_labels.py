"""The table of derived values in docs/protocol.md has every label of the code, and the code every label of the table.

A label is the first word of all that is signed, hashed or authenticated (schemas/binding.py). The code's are read from
its syntax trees: no call may have one that cannot be read there, and none may serve two purposes.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from attestgate.cli.reference import DOCS

ROOT = DOCS.parent
CODE = ("schemas", "bus", "manager", "enclave", "host_agent", "app_agent", "cli", "compose")
LABELLED = {"canonical", "digest", "Purpose"}
"""Functions whose first argument is the label; those that follow it are the context, but for a purpose's."""
OWN = {"attestgate.schemas.binding", "attestgate.schemas.signing"}
PASSED_ON = {("schemas/binding.py", "digest"), ("schemas/signing.py", "signed_bytes")}
"""Functions whose label is a variable: their callers say it."""
CONTEXT = {"grant": 1, "answer": 1}
"""How many values a signature covers beside deployment, author's role, place and payload, where there are any."""
ROW = re.compile(r"\| (?P<value>[^|]+) \| (?P<how>[^|]+) \| `(?P<label>[^`]+)` \|(?P<context>[^|]*)\| [^|]+ \|")


class Use(NamedTuple):
    """One call with a label. `parts` is how many values follow it, None for any number."""

    where: str
    function: str
    label: str
    parts: int | None


def uses() -> Iterator[Use]:
    """Every use of a label in the code."""
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            yield from _Uses(name, ast.parse(path.read_text(encoding="utf-8"))).found


class _Uses(ast.NodeVisitor):
    def __init__(self, file: str, tree: ast.Module) -> None:
        self.file = file
        self.found: list[Use] = []
        self._inside = ""
        self._imported = {
            alias.asname or alias.name: alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module in OWN
            for alias in node.names
        }
        module = "attestgate." + file.removesuffix(".py").replace("/", ".")
        if module in OWN:
            self._imported |= {name: name for name in LABELLED}
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._within(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._within(node)

    def _within(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before, self._inside = self._inside, node.name
        self.generic_visit(node)
        self._inside = before

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        match node.func:
            case ast.Name(id=name) if name in self._imported:
                function = self._imported[name]
            case ast.Attribute(value=ast.Name(id="binding" | "signing"), attr=name):
                function = name
            case _:
                return
        if function in LABELLED:
            context = node.args[1:]
            starred = any(isinstance(part, ast.Starred) for part in context)
            for label in self._labels(node.args[0]):
                where = f"{self.file}:{node.lineno}"
                parts = CONTEXT.get(label, 0) if function == "Purpose" else None if starred else len(context)
                self.found.append(Use(where, function, label, parts))

    def _labels(self, said: ast.expr) -> list[str]:
        match said:
            case ast.Constant(value=str(label)):
                return [label]
            case ast.JoinedStr(values=values):
                return ["".join(_shown(value) for value in values)]
        assert (self.file, self._inside) in PASSED_ON, f"{self.file}: a label that cannot be read: {ast.unparse(said)}"
        return []


def _shown(part: ast.expr) -> str:
    match part:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=ast.Name(id=name)):
            return f"<{name}>"
    raise AssertionError(ast.unparse(part))


class Row(NamedTuple):
    """One line of the table."""

    value: str
    how: str
    label: str
    context: str


def rows() -> list[Row]:
    """The table."""
    section = (DOCS / "protocol.md").read_text(encoding="utf-8").partition("\n## Derived values\n")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    found = [ROW.fullmatch(line) for line in lines[2:]]
    assert all(found), [line for line, row in zip(lines[2:], found, strict=True) if row is None]
    return [Row(row["value"], row["how"], row["label"], row["context"].strip()) for row in found if row is not None]


USES = list(uses())


def test_the_table_has_every_label_of_the_code_and_no_other() -> None:
    used = {use.label: use.where for use in USES}
    listed = {row.label for row in rows()}
    assert {label: where for label, where in used.items() if label not in listed} == {}
    assert listed - used.keys() == set()
    assert len(used) > 40


def test_a_label_has_one_row_and_serves_one_purpose() -> None:
    labels, values = [row.label for row in rows()], [row.value for row in rows()]
    assert len(labels) == len(set(labels)) and len(values) == len(set(values))
    functions = defaultdict[str, set[str]](set)
    for use in USES:
        functions[use.label].add("signature" if use.function == "Purpose" else use.function)
    assert {label: found for label, found in functions.items() if len(found) > 1} == {}
    for row in rows():
        (function,) = functions[row.label]
        assert (function == "signature") == row.how.startswith("Ed25519"), row
        assert (function == "digest") == row.how.startswith("SHA-512"), row


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.label)
def test_a_row_names_each_part_of_the_context(row: Row) -> None:
    named = [part for part in row.context.split(", ") if part]
    counts = {use.parts for use in USES if use.label == row.label}
    assert counts == {None if "..." in named else len(named)}


def test_every_key_is_derived_from_a_labelled_statement() -> None:
    """What `derive` is given as info is `canonical(...)`, there or in an assignment of the same function."""
    found = 0
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            functions = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for function in (node for node in functions if isinstance(node, ast.FunctionDef)):
                made = {
                    target.id
                    for node in ast.walk(function)
                    if isinstance(node, ast.Assign) and _calls(node.value, "canonical")
                    for target in node.targets
                    if isinstance(target, ast.Name)
                }
                for call in (node for node in ast.walk(function) if _calls(node, "derive")):
                    assert isinstance(call, ast.Call)
                    info = call.args[1]
                    assert _calls(info, "canonical") or (isinstance(info, ast.Name) and info.id in made), path
                    found += 1
    assert found >= 6


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def test_what_the_code_calls_by_another_name_is_seen() -> None:
    """The control: a call under an alias, by its module, or with a label that is put together."""
    source = """
from attestgate.schemas.binding import canonical as c
from attestgate.schemas import binding
from attestgate.schemas.signing import Purpose
def made(step, label):
    c("one", step)
    binding.digest(f"two {step}", *label)
    Purpose("three", "manager", Model)
"""
    found = _Uses("manager/made.py", ast.parse(source)).found
    assert [(use.function, use.label, use.parts) for use in found] == [
        ("canonical", "one", 1),
        ("digest", "two <step>", None),
        ("Purpose", "three", 0),
    ]
    with pytest.raises(AssertionError, match="cannot be read"):
        _Uses("manager/made.py", ast.parse("from attestgate.schemas.binding import digest\ndigest(label)"))
