"""tests/README.md names every folder of tests, and only tests and files that there are."""

from __future__ import annotations

import ast
import re

from attestgate.cli.reference import DOCS

ROOT = DOCS.parent
TEXT = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`((?:\w+/)+[\w*]+\.\w+)(?:::(\w+))?`")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def test_every_folder_of_tests_has_its_row() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(\1\) \|", TEXT, re.MULTILINE)
    assert rows == sorted({path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")})


def test_every_link_leads_somewhere() -> None:
    assert [link for link in LINK.findall(TEXT) if not (ROOT / "tests" / link).exists()] == []


def test_every_file_and_test_that_it_names_is_there() -> None:
    named = NAMED.findall(TEXT)
    assert len(named) > 30
    for pattern, test in named:
        paths = list(ROOT.glob(pattern))
        assert paths, pattern
        if test:
            (path,) = paths
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert test in {getattr(node, "name", None) for node in tree.body}, f"{pattern}::{test}"
