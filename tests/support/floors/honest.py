"""A deployment with an honest bus and workers that are slow: each may store what it made of a record long after it read
it. Here the record's compare-and-set is what decides."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from attestgate.manager.gateway.floors import Floors
from tests.support.floors.gate import Gates
from tests.support.floors.values import BEGAN, OPERATOR, Said, Session, statement

SESSION = Session("0a" * 16, "host.h1")
RANK = BEGAN * 10**6


class Renewals(NamedTuple):
    """One session that is current, its record, and the bucket's one value under its key."""

    revision: int
    over: bool
    ended: bool
    """Whether its end was ever stored: so the session is over, whatever its record says later."""
    drifted: bool
    bucket: Said
    read: tuple[int | None, int | None] = (None, None)
    """The revision of the record as each worker has read it, with an answer from before the drift."""
    gates: tuple[tuple[int, bool], ...] = ()
    """Each gateway, and whether it has read the bucket since the end."""


class SlowWorkers:
    """Two workers and two gateways. `compares`: what is stored is compared with what was read."""

    def __init__(self, most_revisions: int, *, compares: bool = True) -> None:
        self._most = most_revisions
        self._compares = compares
        self._gates = Gates(Floors, frozenset({OPERATOR}), BEGAN)

    def start(self) -> Renewals:
        """Its first lease is in the bucket."""
        return Renewals(1, False, False, False, _said(False, 1), gates=((self._gates.new, False),) * 2)

    def key(self, state: Renewals) -> Hashable:
        """The workers are alike, and so are the gateways."""
        return state[:5], tuple(sorted(one or 0 for one in state.read)), tuple(sorted(state.gates))

    def steps(self, state: Renewals) -> Iterator[tuple[str, Renewals]]:
        """Everything that may happen next."""
        if not state.drifted:
            yield "the host drifts", state._replace(drifted=True)
        for at, read in enumerate(state.read):
            name = f"worker {'AB'[at]}"
            if read is None and not state.over:
                after = _reading(state, at, state.revision)
                yield f"{name}: reads revision {state.revision}, and an answer of the host", after
            if read is not None:
                yield from ((f"{name}: {label}", after) for label, after in self._store(state, at, read))
        for at, (gate, _) in enumerate(state.gates):
            restarted = self._gates.restart(gate, frozenset({OPERATOR}))
            yield f"gateway {at + 1}: starts again", _gate(state, at, restarted, caught_up=False)
            taken = self._gates.write(self._gates.take(gate, statement(SESSION, state.bucket)).gate)
            yield f"gateway {at + 1}: reads the bucket", _gate(state, at, taken, caught_up=state.ended)

    def _store(self, state: Renewals, at: int, read: int) -> Iterator[tuple[str, Renewals]]:
        after = _reading(state, at, None)
        if self._compares and read != state.revision:
            yield "loses its compare-and-set", after
            return
        revision = read + 1
        if revision > self._most:
            return
        renewed = after._replace(revision=revision, over=False, bucket=_said(False, revision))
        yield f"stores a renewal, revision {revision}", renewed
        if state.drifted:
            over = after._replace(revision=revision, over=True, ended=True, bucket=_said(True, revision))
            gates = tuple((gate, False) for gate, _ in over.gates)
            yield f"stores the end, revision {revision}", over._replace(gates=gates)

    def fault(self, state: Renewals) -> str | None:
        """Whether a gateway admits a session whose end it has had every chance to hear of."""
        if any(caught_up and self._gates.admitted(gate) for gate, caught_up in state.gates):
            return "a session is admitted by a gateway that has read everything since it ended"
        return None


def _said(ends: bool, number: int) -> Said:
    return Said(ends, 0, RANK, 0 if ends else 1, 0 if ends else 1, BEGAN, number)


def _reading(state: Renewals, at: int, revision: int | None) -> Renewals:
    first, second = state.read
    return state._replace(read=(revision, second) if at == 0 else (first, revision))


def _gate(state: Renewals, at: int, gate: int, *, caught_up: bool) -> Renewals:
    return state._replace(gates=(*state.gates[:at], (gate, caught_up), *state.gates[at + 1 :]))
