"""What must hold in every state, by what is true and not by what anybody in it remembers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from attestgate.manager.gateway.floors import AnyLease, Revocation
from attestgate.schemas.admission import Statement
from tests.support.floors.gate import LEASE_S, Gates, tenure_of
from tests.support.floors.values import (
    THIEF,
    Rules,
    Said,
    Scope,
    Seen,
    Session,
    State,
    current,
    operators,
    second,
    statement,
)


class Judge:
    """Judges states of a scope, whose gateways are `gates`."""

    def __init__(self, scope: Scope, rules: Rules, gates: Gates) -> None:
        self._sessions = scope.sessions
        self._rules = rules
        self._gates = gates
        self._locked: dict[object, str | None] = {}

    def fault(self, state: State) -> str | None:
        """Who is admitted that must not be, or kept out that must be let in."""
        for gateway in state.gates:
            for one in self._gates.admitted(gateway.gate):
                if (fault := self._wrong(state, gateway.seen, one)) is not None:
                    return fault
        return self._locked_out(state)

    def _wrong(self, state: State, seen: Seen, one: AnyLease) -> str | None:
        session = next(at for at, other in enumerate(self._sessions) if other.id == one.tenure.session)
        at = second(state.tick)
        if session in seen.out:
            return "a session is admitted again after one that followed it"
        if not state.stepped and any(self._before(state, session, other) for other in seen.taken):
            return "a session is admitted after one that began later, by clocks that were right"
        if session in seen.ended:
            return "a session is admitted after its end"
        counting = operators(state.thief)
        if any(one.enrolled <= sequence for signer, sequence in seen.revoked if signer in counting):
            return "a session is admitted by an enrolment that was revoked"
        if any(one.policy < version and at - since >= LEASE_S for version, since in seen.policies):
            return "a session is admitted by an older policy, a lease after a newer one was seen"
        return None

    def _before(self, state: State, one: int, other: int) -> bool:
        since, later = state.since[one], state.since[other]
        same = self._sessions[one].place == self._sessions[other].place
        return same and since is not None and later is not None and since < later

    def _locked_out(self, state: State) -> str | None:
        """Whether an honest host or application is kept out, with an honest bus and right clocks from now on."""
        if state.thief != "out" and any(THIEF in dict(one.seen.revoked) for one in state.gates):
            return None  # that is what an operator's key is for
        key = (
            state.tick,
            tuple(one.gate for one in state.gates),
            tuple(sorted(worker.current for worker in state.workers)),
            state.commands[-1],
            state.policy,
            state.thief,
        )
        if key not in self._locked:
            self._locked[key] = self._lock_out(state)
        return self._locked[key]

    def _lock_out(self, state: State) -> str | None:
        places = sorted({session.place for session in self._sessions})
        for one, other, told in self._casts(state):
            gates, admitted = [self._gates.write(one.gate) for one in state.gates], []
            for at, place in enumerate(places):
                gates, newest = self._two_sessions(state, gates, place, 100 + 2 * at, (one, other), told)
                admitted.append(newest)
            if not all(self._let_in(newest, gates) for newest in admitted):
                return "an honest session is kept out, and so is the next"
        return None

    def _casts(self, state: State) -> Iterable[tuple[int, int, int]]:
        """Which worker opens an honest session, which the next, and which is told by the gateways."""
        workers = range(len(state.workers))
        if not self._rules.tells_all:
            return product(workers, workers, workers)
        others = [at for at in workers if state.workers[at].current not in [one.current for one in state.workers[:at]]]
        return [(one, other, other) for one, other in product(others, repeat=2)]

    def _two_sessions(
        self, state: State, gates: list[int], place: str, serial: int, by: tuple[int, int], told: int
    ) -> tuple[list[int], Statement]:
        """An honest session opened by one worker and, unless it is let in everywhere, the next by another.

        Worker `told` gets the reports of the gateways. Returns the gateways, and the newest session's lease.
        """
        enrolled = state.commands[-1] if state.commands[-1] > 0 else -state.commands[-1] + 1
        now, pointer, learned = second(state.tick), 0, (0, "")
        for attempt, worker in enumerate(by):
            knows = current(state.workers[worker], place)
            if worker == told:
                knows = max(knows, learned)
            rank = self._rules.rank(now * 10**6 + attempt + 1, max(pointer, knows[0]))
            session = Session(f"{serial + attempt:032x}", place)
            newest = statement(session, Said(False, serial + attempt, rank, enrolled, state.policy, now, 1))
            changes = [self._gates.take(gate, newest) for gate in gates]
            gates, pointer = [self._gates.write(change.gate) for change in changes], rank
            if self._let_in(newest, gates):
                break
            learned = max(_taught(change.taught) for change in changes)
        return gates, newest

    def _let_in(self, newest: Statement, gates: list[int]) -> bool:
        return all(newest in self._gates.admitted(gate) for gate in gates)


def _taught(floor: Statement | Revocation | None) -> tuple[int, str]:
    """What a worker learns by the floor that a gateway encloses in its report."""
    tenure = None if floor is None or isinstance(floor, Revocation) else tenure_of(floor)
    return (0, "") if tenure is None else (tenure.rank, tenure.session)
