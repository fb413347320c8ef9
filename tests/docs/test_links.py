"""What the pages point at is there: links and their anchors, files named in the text, tests named as proof."""

from __future__ import annotations

import re
from collections import Counter
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from attestgate.cli.reference import DOCS

ROOT = DOCS.parent
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "tests").glob("*.md")])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FOLDERS = [path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
NAMED = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w\.(?:py|md|ya?ml|toml|js|json|template|lock)\b")
"""A file of the repository by its path, in running text or in a block of commands."""
QUOTED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
"""A file or folder of the repository in backticks."""
MADE = ("build/",)
"""Folders that `make` fills."""
PROOF = re.compile(r"(?<![\w/])([a-z]+/test_\w+)|`([\w.]+)`")
"""In the last column of CLAIMS: a test's file below tests/, or a function of the file named last."""
CLAIMS = "others-mistakes.md"
"""The page whose first table names a test in each row, by hand."""


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a relative link."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"{link}: no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target)):
        return f"{link}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    relative = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [wrong for link in relative if (wrong := problem(page, link))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))  # links are looked at above, from their page
    named = {*NAMED.findall(text), *QUOTED.findall(text)}
    assert [path for path in sorted(named) if not path.startswith(MADE) and not (ROOT / path).exists()] == []


def test_the_pages_are_found() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/README.md", "docs/sgx.md"}
    assert len(NAMED.findall((DOCS / "sgx.md").read_text(encoding="utf-8"))) > 5


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((DOCS / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - linked == {"README.md"}


def claims() -> list[str]:
    """The last column of the first table of the page."""
    lines = iter((DOCS / CLAIMS).read_text(encoding="utf-8").splitlines())
    table = takewhile(lambda line: line.startswith("| "), dropwhile(lambda line: not line.startswith("| "), lines))
    return [line.strip("| ").split(" | ")[-1] for line in table][2:]


@pytest.mark.parametrize("row", claims())
def test_every_claim_names_a_test_that_exists(row: str) -> None:
    functions: list[str] = []
    named = PROOF.findall(row)
    assert named and named[0][0]
    for file, function in named:
        if file:
            path = ROOT / "tests" / f"{file}.py"
            assert path.is_file(), file
            functions = re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        else:
            pattern = re.escape(function).replace(re.escape("..."), r"\w*")
            assert any(re.fullmatch(pattern, name) for name in functions), function
