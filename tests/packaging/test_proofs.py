"""What a grant rests on is a value that only its check makes: no other module calls its constructor, or copies one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestgate

ROOT = Path(attestgate.__file__).resolve().parent
PROOFS = {
    "Affirmed": "manager/sessions/appraisal.py",
    "KeyProven": "manager/sessions/key_proof.py",
    "TrustedHost": "manager/sessions/trusted_host.py",
    "Enrolled": "manager/policy/enrolments.py",
    "IssuedCertificate": "manager/pki/issue.py",
    "AppliedAtGateway": "manager/handlers/gateway_reports.py",
    "Received": "manager/handlers/operators.py",
}
"""The only module that makes each."""
GRANTS = {
    ("manager/sessions/step4_host_key.py", "grant_host_key"): {"Affirmed"},
    ("manager/sessions/step4_host_key.py", "trust"): {"KeyProven", "Affirmed"},
    ("manager/sessions/step7_certificate.py", "certify"): {"IssuedCertificate", "TrustedHost", "Enrolled"},
    ("manager/sessions/step7_certificate.py", "lease"): {"TrustedHost", "Enrolled"},
    ("manager/sessions/step7_certificate.py", "take_applied"): {"AppliedAtGateway"},
    ("manager/handlers/operators.py", "_apply"): {"Received"},
}
"""The functions that grant, and what each is given."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the product, by its path."""
    for folder in ("manager", "bus", "schemas", "cli", "compose", "enclave", "host_agent", "app_agent"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield f"{folder}/{path.relative_to(ROOT / folder)}", ast.parse(path.read_text(encoding="utf-8"))


def names(node: ast.AST) -> set[str]:
    """Every name within a piece of code."""
    found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def made(tree: ast.Module) -> set[str]:
    """The proofs that a module makes: whose name it calls, or a method of whose name."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {call.id for call in calls if isinstance(call, ast.Name)}
    called |= {call.value.id for call in calls if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name)}
    return called & PROOFS.keys()


def copied(tree: ast.Module) -> set[str]:
    """The proofs that a function is given and changes by `dataclasses.replace`."""
    found: set[str] = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
        given = {
            argument.arg: names(argument.annotation) & PROOFS.keys()
            for argument in (*function.args.args, *function.args.kwonlyargs)
            if argument.annotation is not None
        }
        for call in (
            node for node in ast.walk(function) if isinstance(node, ast.Call) and "replace" in names(node.func)
        ):
            changed = call.args[0] if call.args else None
            found |= given.get(changed.id, set()) if isinstance(changed, ast.Name) else set()
    return found


def test_only_its_check_makes_a_proof() -> None:
    makers = {(name, path) for path, tree in trees() for name in made(tree)}
    assert makers == set(PROOFS.items())


def test_none_is_copied_with_changes() -> None:
    assert {(name, path) for path, tree in trees() for name in copied(tree)} == set()


@pytest.mark.parametrize(("path", "function"), GRANTS)
def test_what_grants_is_given_its_proofs(path: str, function: str) -> None:
    (found,) = [
        node
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    ]
    annotations = [argument.annotation for argument in found.args.args if argument.annotation is not None]
    assert GRANTS[path, function] <= {name for annotation in annotations for name in names(annotation)}


@pytest.mark.parametrize(
    "code",
    [
        "KeyProven(basis, outcome)",
        "KeyProven.__new__(KeyProven)",
        "def f(x: KeyProven): return replace(x, basis=b)",
        "def f(x: KeyProven): return dataclasses.replace(x, basis=b)",
    ],
)
def test_it_finds_one_that_is_made_elsewhere(code: str) -> None:
    tree = ast.parse(code)
    assert made(tree) | copied(tree) == {"KeyProven"}
