"""Both state tables against grids written down independently of them: every state, every input."""

from __future__ import annotations

import pytest

from attestgate.manager.sessions.states import APP, ENDS, HOST, Input, InvalidTransition, State, Table, move

COLUMNS = [
    "HELLO",
    "EVIDENCE_GOOD",
    "EVIDENCE_BAD",
    "EVIDENCE_FOREIGN",
    "PROOF_GOOD",
    "PROOF_BAD",
    "DELIVER",
    "DELIVERED",
    "NOT_DELIVERED",
    "ISSUED",
    "APPLIED",
    "RECHECK_DUE",
    "DEADLINE",
    "REVOKE",
    "SUPERSEDE",
    "HOST_LOST",
]
SHORT = {
    ".": None,
    "CHAL": "CHALLENGED",
    "WAIT": "WAITING_FOR_KEY",
    "GRAN": "GRANTED",
    "PROV": "PROVEN",
    "CERT": "CERTIFIED",
    "TRUS": "TRUSTED",
    "ADMI": "ADMITTED",
    "RECH": "RECHECKING",
    "REFU": "REFUSED",
    "UNTR": "UNTRUSTED",
    "EXPI": "EXPIRED",
    "REVO": "REVOKED",
    "SUPE": "SUPERSEDED",
}
#                  HELL GOOD BAD  FORE P-OK P-NO DELI DEL'D NOT  ISSU APPL RECH DEAD REVO SUPE LOST
HOST_GRID = """
NEW                CHAL .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
CHALLENGED         .    GRAN REFU CHAL .    .    .    .    .    .    .    .    EXPI REVO SUPE .
GRANTED            .    .    .    .    TRUS REFU .    .    .    .    .    .    EXPI REVO SUPE .
TRUSTED            .    .    .    .    .    .    TRUS TRUS TRUS .    .    RECH EXPI REVO SUPE .
RECHECKING         .    TRUS UNTR .    .    .    RECH RECH RECH .    .    RECH EXPI REVO SUPE .
"""
APP_GRID = """
NEW                CHAL .    .    .    .    .    .    .    .    .    .    .    .    .    .    .
CHALLENGED         .    WAIT REFU CHAL .    .    .    .    .    .    .    .    EXPI REVO SUPE REFU
WAITING_FOR_KEY    .    .    .    .    .    .    .    GRAN REFU .    .    .    EXPI REVO SUPE REFU
GRANTED            .    .    .    .    PROV REFU .    .    .    .    .    .    EXPI REVO SUPE REFU
PROVEN             .    .    .    .    .    .    .    .    .    CERT .    .    EXPI REVO SUPE REFU
CERTIFIED          .    .    .    .    .    .    .    .    .    .    ADMI .    EXPI REVO SUPE REFU
ADMITTED           .    .    .    .    .    .    .    .    .    .    ADMI RECH EXPI REVO SUPE UNTR
RECHECKING         .    ADMI UNTR .    .    .    .    .    .    .    RECH RECH EXPI REVO SUPE UNTR
"""


def expected(grid: str) -> dict[tuple[str, str], str | None]:
    rows = [line.split() for line in grid.strip().splitlines()]
    return {(row[0], given): SHORT[to] for row in rows for given, to in zip(COLUMNS, row[1:], strict=True)}


CASES = [
    (name, table, state, given, expected(grid).get((state, given)))
    for name, table, grid in (("host", HOST, HOST_GRID), ("app", APP, APP_GRID))
    for state in State
    for given in COLUMNS
]


@pytest.mark.parametrize(("name", "table", "state", "given", "to"), CASES, ids=lambda v: str(v)[:15])
def test_every_state_and_every_input(name: str, table: Table, state: State, given: str, to: str | None) -> None:
    if to is None:
        with pytest.raises(InvalidTransition):
            move(table, state, Input(given))
    else:
        assert move(table, state, Input(given)) == State(to)


def test_the_grids_know_every_input_and_every_state() -> None:
    assert {Input(given) for given in COLUMNS} == set(Input)
    rows = {State(row.split()[0]) for row in (HOST_GRID + APP_GRID).splitlines() if row}
    assert rows | ENDS == set(State)


@pytest.mark.parametrize("table", [HOST, APP])
def test_nothing_leaves_an_end(table: Table) -> None:
    assert not [row for row in table if row[0] in ENDS]


@pytest.mark.parametrize("table", [HOST, APP])
def test_whatever_lives_can_end_in_time_by_order_and_by_a_successor(table: Table) -> None:
    live = {state for state, _ in table} - {State.NEW}
    for state in live:
        assert table[state, Input.DEADLINE] is State.EXPIRED
        assert table[state, Input.REVOKE] is State.REVOKED
        assert table[state, Input.SUPERSEDE] is State.SUPERSEDED


@pytest.mark.parametrize(("table", "trusted"), [(HOST, State.TRUSTED), (APP, State.ADMITTED)])
def test_trust_is_reached_through_every_step_only(table: Table, trusted: State) -> None:
    """Without any one of the inputs on the way there is no way."""
    way = {
        State.TRUSTED: [Input.HELLO, Input.EVIDENCE_GOOD, Input.PROOF_GOOD],
        State.ADMITTED: [
            Input.HELLO,
            Input.EVIDENCE_GOOD,
            Input.DELIVERED,
            Input.PROOF_GOOD,
            Input.ISSUED,
            Input.APPLIED,
        ],
    }[trusted]
    for missing in way:
        reached, grew = {State.NEW}, True
        while grew:
            following = {to for (state, given), to in table.items() if state in reached and given is not missing}
            grew = not following <= reached
            reached |= following
        assert trusted not in reached, missing
