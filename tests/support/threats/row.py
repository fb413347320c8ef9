"""What a row of docs/threats.md is, and the mark of a test that shows one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Adversary:
    """Somebody with something in hand: a heading of the page. `roles` are what it may have, each with its own rows."""

    name: str
    has: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """An attack, what prevents it, and what is not prevented; one sentence each, as Markdown.

    `premise` is what the prevention needs besides. `role` is one of the adversary's, if it has roles.
    """

    by: Adversary
    attack: str
    prevention: str = ""
    premise: str = ""
    left: str = ""
    role: str = ""


def threat(*rows: Row) -> pytest.MarkDecorator:
    """Mark a test that shows what these rows say, and that fails where it is not so.

    A file whose tests all show it has the mark in its `pytestmark`. `pytest -m threat` runs all that are marked.
    """
    return pytest.mark.threat.with_args(*rows)
