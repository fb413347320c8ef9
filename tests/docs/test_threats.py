"""docs/threats.md is made of its rows and of the tests' marks: no row without a test, no mark that shows nothing."""

from __future__ import annotations

import pytest

from tests.support.threats import page
from tests.support.threats.page import ADVERSARIES, PAGE, ROWS, Mark, WrongMark, all_marks, marks
from tests.support.threats.row import Adversary

MARKS = all_marks()
ROW = "EVIDENCE_RELAYED"
TEST = "def test_x() -> None: ...\n"


def test_the_page_has_the_tables_that_are_made() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert text == page.page(text), "make it again: python -m tests.support.threats"


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_a_test(name: str) -> None:
    assert name in {mark.row for mark in MARKS}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_prevents_the_attack_or_what_is_left(name: str) -> None:
    row = ROWS[name]
    assert row.by in ADVERSARIES
    assert row.prevention or row.left
    assert row.prevention or not row.premise, "a premise of nothing"
    for cell in (row.attack, row.prevention, row.left):
        assert not cell or (cell.endswith(".") and ". " not in cell and "|" not in cell), "one sentence"
    assert not row.premise.endswith(".")


@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda adversary: adversary.name)
def test_each_role_of_an_adversary_has_rows_and_no_other(adversary: Adversary) -> None:
    assert {row.role for row in ROWS.values() if row.by is adversary} == set(adversary.roles or [""])


@pytest.mark.parametrize(
    "source",
    [
        f"@threat(rows.{ROW})\n{TEST}",
        f"@pytest.mark.stack\n@threat(rows.{ROW})\nasync {TEST}",
    ],
)
def test_a_mark_on_a_test_is_seen(source: str) -> None:
    assert list(marks("x/test_y", source)) == [Mark(ROW, "x/test_y", "test_x")]


@pytest.mark.parametrize("source", [f"pytestmark = threat(rows.{ROW})", f"pytestmark = [stack, threat(rows.{ROW})]"])
def test_a_mark_on_a_file_is_seen(source: str) -> None:
    assert list(marks("x/test_y", source)) == [Mark(ROW, "x/test_y", "")]


@pytest.mark.parametrize(
    "source",
    [
        f"@threat(rows.NO_SUCH_ROW)\n{TEST}",
        f"@threat(rows.BUS)\n{TEST}",
        f"@threat({ROW})\n{TEST}",
        f"@threat(rows.{ROW})\ndef helper() -> None: ...\n",
        f"class TestX:\n    @threat(rows.{ROW})\n    {TEST}",
        f"shown = threat(rows.{ROW})\n\n@shown\n{TEST}",
        f"@pytest.mark.skip\n@threat(rows.{ROW})\n{TEST}",
        f"@threat(rows.{ROW})\n@pytest.mark.xfail(reason='later')\n{TEST}",
    ],
    ids=["no row", "an adversary", "not of rows", "no test", "in a class", "by another name", "skipped", "xfail"],
)
def test_a_mark_that_shows_nothing_is_refused(source: str) -> None:
    with pytest.raises(WrongMark):
        list(marks("x/test_y", source))


def test_the_marks_that_pytest_sees_are_those_in_the_table(request: pytest.FixtureRequest) -> None:
    """Of this session's tests: what the syntax tree shows, pytest has as a marker."""
    for item in request.session.items:
        found = {row for marker in item.iter_markers("threat") for row in marker.args}
        file, test = item.nodeid.split("::")[0].removeprefix("tests/").removesuffix(".py"), item.name.split("[")[0]
        assert found == {ROWS[mark.row] for mark in MARKS if mark.file == file and mark.test in ("", test)}, item.nodeid
