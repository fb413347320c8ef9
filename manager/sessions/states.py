"""The states of both kinds of session and every transition between them.

Host:         NEW -> CHALLENGED -> GRANTED -> TRUSTED <-> RECHECKING -> an end
Application:  NEW -> CHALLENGED -> WAITING_FOR_KEY -> GRANTED -> PROVEN -> CERTIFIED -> ADMITTED <-> RECHECKING
              -> an end

The ends: REFUSED (before trust), UNTRUSTED (failed a recheck, or lost its host), EXPIRED (no message by its deadline),
REVOKED (by an operator), SUPERSEDED (by a newer session of the same enrolled subject). Nothing leaves an end.

An input without a row in the table changes nothing. Which input a message is was decided before, by opening it and
appraising its content: the table depends on neither.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a session."""

    NEW = "NEW"
    CHALLENGED = "CHALLENGED"
    WAITING_FOR_KEY = "WAITING_FOR_KEY"
    GRANTED = "GRANTED"
    PROVEN = "PROVEN"
    CERTIFIED = "CERTIFIED"
    TRUSTED = "TRUSTED"
    ADMITTED = "ADMITTED"
    RECHECKING = "RECHECKING"
    REFUSED = "REFUSED"
    UNTRUSTED = "UNTRUSTED"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"
    SUPERSEDED = "SUPERSEDED"


class Input(StrEnum):
    """What can happen to a session."""

    HELLO = "HELLO"
    EVIDENCE_GOOD = "EVIDENCE_GOOD"
    EVIDENCE_BAD = "EVIDENCE_BAD"
    """The subject's own evidence, appraised and refused."""
    EVIDENCE_FOREIGN = "EVIDENCE_FOREIGN"
    """Evidence that is not bound to the enrolled platform and measurement: anyone could have sent it."""
    PROOF_GOOD = "PROOF_GOOD"
    PROOF_BAD = "PROOF_BAD"
    DELIVER = "DELIVER"
    """An application session asks the host to deliver its key."""
    DELIVERED = "DELIVERED"
    """The host's enclave has written the key to the volume."""
    NOT_DELIVERED = "NOT_DELIVERED"
    ISSUED = "ISSUED"
    APPLIED = "APPLIED"
    """A gateway reports, signed, that nginx admits the certificate."""
    RECHECK_DUE = "RECHECK_DUE"
    DEADLINE = "DEADLINE"
    REVOKE = "REVOKE"
    SUPERSEDE = "SUPERSEDE"
    HOST_LOST = "HOST_LOST"


ENDS = frozenset({State.REFUSED, State.UNTRUSTED, State.EXPIRED, State.REVOKED, State.SUPERSEDED})
Table = dict[tuple[State, Input], State]


def _everywhere(states: tuple[State, ...], moves: dict[Input, State]) -> Table:
    return {(state, given): to for state in states for given, to in moves.items()}


_HOST_LIVE = (State.CHALLENGED, State.GRANTED, State.TRUSTED, State.RECHECKING)
_APP_BEFORE_TRUST = (State.CHALLENGED, State.WAITING_FOR_KEY, State.GRANTED, State.PROVEN, State.CERTIFIED)
_APP_TRUSTED = (State.ADMITTED, State.RECHECKING)
_ANY_TIME = {Input.DEADLINE: State.EXPIRED, Input.REVOKE: State.REVOKED, Input.SUPERSEDE: State.SUPERSEDED}

HOST: Table = {
    (State.NEW, Input.HELLO): State.CHALLENGED,
    (State.CHALLENGED, Input.EVIDENCE_GOOD): State.GRANTED,
    (State.CHALLENGED, Input.EVIDENCE_BAD): State.REFUSED,
    (State.CHALLENGED, Input.EVIDENCE_FOREIGN): State.CHALLENGED,
    (State.GRANTED, Input.PROOF_GOOD): State.TRUSTED,
    (State.GRANTED, Input.PROOF_BAD): State.REFUSED,
    (State.TRUSTED, Input.RECHECK_DUE): State.RECHECKING,
    (State.RECHECKING, Input.RECHECK_DUE): State.RECHECKING,
    (State.RECHECKING, Input.EVIDENCE_GOOD): State.TRUSTED,
    (State.RECHECKING, Input.EVIDENCE_BAD): State.UNTRUSTED,
    (State.TRUSTED, Input.DELIVER): State.TRUSTED,
    (State.RECHECKING, Input.DELIVER): State.RECHECKING,
    (State.TRUSTED, Input.DELIVERED): State.TRUSTED,
    (State.RECHECKING, Input.DELIVERED): State.RECHECKING,
    (State.TRUSTED, Input.NOT_DELIVERED): State.TRUSTED,
    (State.RECHECKING, Input.NOT_DELIVERED): State.RECHECKING,
    **_everywhere(_HOST_LIVE, _ANY_TIME),
}

APP: Table = {
    (State.NEW, Input.HELLO): State.CHALLENGED,
    (State.CHALLENGED, Input.EVIDENCE_GOOD): State.WAITING_FOR_KEY,
    (State.CHALLENGED, Input.EVIDENCE_BAD): State.REFUSED,
    (State.CHALLENGED, Input.EVIDENCE_FOREIGN): State.CHALLENGED,
    (State.WAITING_FOR_KEY, Input.DELIVERED): State.GRANTED,
    (State.WAITING_FOR_KEY, Input.NOT_DELIVERED): State.REFUSED,
    (State.GRANTED, Input.PROOF_GOOD): State.PROVEN,
    (State.GRANTED, Input.PROOF_BAD): State.REFUSED,
    (State.PROVEN, Input.ISSUED): State.CERTIFIED,
    (State.CERTIFIED, Input.APPLIED): State.ADMITTED,
    (State.ADMITTED, Input.APPLIED): State.ADMITTED,
    (State.RECHECKING, Input.APPLIED): State.RECHECKING,
    (State.ADMITTED, Input.RECHECK_DUE): State.RECHECKING,
    (State.RECHECKING, Input.RECHECK_DUE): State.RECHECKING,
    (State.RECHECKING, Input.EVIDENCE_GOOD): State.ADMITTED,
    (State.RECHECKING, Input.EVIDENCE_BAD): State.UNTRUSTED,
    **_everywhere(_APP_BEFORE_TRUST, {**_ANY_TIME, Input.HOST_LOST: State.REFUSED}),
    **_everywhere(_APP_TRUSTED, {**_ANY_TIME, Input.HOST_LOST: State.UNTRUSTED}),
}


class InvalidTransition(Exception):
    """The input does not fit the state: it changes nothing."""

    def __init__(self, state: State, given: Input) -> None:
        super().__init__(f"{given} in {state}")
        self.state = state
        self.given = given


def move(table: Table, state: State, given: Input) -> State:
    """The next state. Raises InvalidTransition where the table has no row."""
    try:
        return table[state, given]
    except KeyError:
        raise InvalidTransition(state, given) from None
