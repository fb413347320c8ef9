"""A deployment that a hostile bus holds in its hand: what honest parts do, in every order that the bus can make of it.

Two manager workers sign with one key. The bus chooses which worker gets which message, and shows it any state that a
record, a pointer, the enrolment or the policy ever had, unless the worker itself remembers a newer one. What is signed
comes to a gateway when the bus likes, and as often. Nothing here is the bus's word: a statement is made by a worker by
its rules, and admitted by a gateway by the real ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import product
from typing import Literal

from attestgate.schemas.admission import Statement, Tenure
from tests.support.floors.gate import LEASE_S, Gates
from tests.support.floors.judge import Judge
from tests.support.floors.values import (
    BEGAN,
    CURRENT,
    FOREVER,
    OPEN,
    OPERATOR,
    OVER,
    REAL,
    THIEF,
    TICK_S,
    Gateway,
    Record,
    Rules,
    Said,
    Scope,
    Seen,
    State,
    Worker,
    current,
    operators,
    revocation,
    second,
    statement,
)


class HostileBus:
    """All that may happen in a scope, by these rules."""

    def __init__(self, scope: Scope, rules: Rules = REAL) -> None:
        self._scope = scope
        self._rules = rules
        self._gates = Gates(rules.floors, operators("unknown"), BEGAN)
        self._judge = Judge(scope, rules, self._gates)

    def start(self) -> State:
        """The subject is enrolled, and the policies are signed."""
        state = State(
            tick=0,
            since=(),
            drifted=frozenset(),
            commands=(1,),
            policy=self._scope.policies,
            thief="unknown",
            stepped=False,
            records=frozenset(),
            said=frozenset(),
            workers=(Worker(), Worker()),
            gates=(Gateway(self._gates.new),) * self._scope.gateways,
        )
        if self._scope.current:
            _, state = next(self._begin(state, 0))
            [record] = state.records
            _, state = next(self._become_current(state, 0, record, second(0)))
        return state

    def key(self, state: State) -> Hashable:
        """The workers are alike, and so are the gateways: their order says nothing."""
        return state._replace(workers=tuple(sorted(state.workers)), gates=tuple(sorted(state.gates, key=_order)))

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next."""
        yield from self._times(state)
        yield from self.operators(state)
        for at, worker in enumerate(state.workers):
            if worker not in state.workers[:at]:
                for label, after in self._worker(state, at):
                    yield f"worker {'AB'[at]}: {label}", after
        for at, gate in enumerate(state.gates):
            if gate not in state.gates[:at]:
                for label, after in self._gateway(state, at):
                    yield f"gateway {at + 1}: {label}", after

    # What nobody on the bus has a say in.

    def _times(self, state: State) -> Iterator[tuple[str, State]]:
        scope = self._scope
        if state.tick < scope.ticks:
            gates = [one._replace(gate=self._gates.pass_time(one.gate, TICK_S)) for one in state.gates]
            now = second(state.tick + 1)
            said = frozenset(one for one in state.said if one.ends or now < one.issued + LEASE_S)
            yield f"{TICK_S} s pass", state._replace(tick=state.tick + 1, gates=tuple(gates), said=said)
        if scope.drift:
            for session in range(len(state.since)):
                if session not in state.drifted:
                    yield f"session {session} drifts", state._replace(drifted=state.drifted | {session})

    def operators(self, state: State) -> Iterator[tuple[str, State]]:
        scope = self._scope
        newest = state.commands[-1]
        sequence = abs(newest) + 1
        if len(state.commands) <= scope.commands:
            yield f"an operator enrols: {sequence}", state._replace(commands=(*state.commands, sequence))
            if newest > 0:
                yield f"an operator revokes: {sequence}", state._replace(commands=(*state.commands, -sequence))
        if scope.thief and state.thief != "out":
            yield from self._settings(state, "out")
        if scope.thief and state.thief == "out":
            yield from self._settings(state, "in")

    def _settings(self, state: State, thief: Literal["in", "out"]) -> Iterator[tuple[str, State]]:
        gates = [self._restarted(one, thief) for one in state.gates]
        yield (
            f"every gateway starts again with the second operator's key {thief}",
            state._replace(thief=thief, gates=tuple(gates)),
        )

    # What a worker does with what the bus shows it.

    def _worker(self, state: State, at: int) -> Iterator[tuple[str, State]]:
        worker = state.workers[at]
        for clock in self._scope.clocks:
            if clock != worker.clock:
                after = _with(state, at, worker._replace(clock=clock))
                yield f"its clock is set {clock * TICK_S:+} s from the right one", after._replace(stepped=True)
        if self._scope.restarts:
            ends = tuple(one for one in worker.seen if one[1] == OVER)
            yield "starts again", _with(state, at, worker._replace(seen=ends))
        yield from self._begin(state, at)
        for record in sorted(state.records):
            if record.stage < OVER and record.stage >= dict(worker.seen).get(record.session, OPEN):
                yield from self._shown(state, at, record)

    def _begin(self, state: State, at: int) -> Iterator[tuple[str, State]]:
        session = len(state.since)
        if session == len(self._scope.sessions):
            return
        worker, now = state.workers[at], second(state.tick + state.workers[at].clock)
        for known, (command, policy) in product(self._pointers(state, session), _readings(state, worker)):
            rank = self._rank(worker, session, now, known) if self._rules.rank_given == "made" else 0
            record = Record(session, OPEN, rank, state.commands[command], policy, now)
            after = _with(state, at, worker._replace(command=command, policy=policy), record)
            label = f"session {session} begins (rank {rank}, enrolment {record.enrolled}, policy {policy})"
            yield label, after._replace(since=(*state.since, state.tick if rank else None))

    def _shown(self, state: State, at: int, record: Record) -> Iterator[tuple[str, State]]:
        worker = state.workers[at]
        now = second(state.tick + worker.clock)
        if self._over(state, worker, record, now):
            yield from self._end(state, at, record, now)
        elif record.stage == OPEN:
            yield from self._become_current(state, at, record, now)
        else:
            yield from self._renew(state, at, record, now)
            if state.commands[-1] < 0:
                command = len(state.commands) - 1
                revoked = _with(state, at, worker._replace(command=command))
                for label, after in self._end(revoked, at, record, now):
                    yield f"reads the Revoke, and {label}", after

    def _over(self, state: State, worker: Worker, record: Record, now: int) -> bool:
        """Whether a worker that is shown a record ends its session."""
        newest = current(worker, self._place(record.session))
        return (
            record.session in state.drifted
            or now >= record.issued + LEASE_S
            or record.issued > now
            or (record.rank > 0 and self._order(record) < newest)
            or state.commands[worker.command] < 0
        )

    def _become_current(self, state: State, at: int, record: Record, now: int) -> Iterator[tuple[str, State]]:
        worker = state.workers[at]
        if record.enrolled not in state.commands[worker.command :]:
            return  # judged by an enrolment that it knows to be over
        command = state.commands.index(record.enrolled)
        for known in [0] if record.rank else self._pointers(state, record.session):
            rank = record.rank or self._rank(worker, record.session, now, known)
            trusted = record._replace(stage=CURRENT, rank=rank)
            knows = _knows(worker._replace(command=command), self._tenure(trusted), record.session, CURRENT)
            label = f"session {record.session} becomes current (rank {rank})"
            since = tuple(
                state.tick if one == record.session and tick is None else tick for one, tick in enumerate(state.since)
            )
            yield label, _with(state, at, knows, trusted, _lease(state, trusted))._replace(since=since)

    def _renew(self, state: State, at: int, record: Record, now: int) -> Iterator[tuple[str, State]]:
        worker = state.workers[at]
        for command, policy in _readings(state, worker):
            renewed = record._replace(enrolled=state.commands[command], policy=policy, issued=now)
            if renewed in state.records:
                continue
            knows = _knows(
                worker._replace(command=command, policy=policy), self._tenure(record), record.session, CURRENT
            )
            label = f"session {record.session} is renewed (rank {record.rank}, enrolment {renewed.enrolled}"
            yield f"{label}, policy {policy})", _with(state, at, knows, renewed, _lease(state, renewed))

    def _end(self, state: State, at: int, record: Record, now: int) -> Iterator[tuple[str, State]]:
        over = record._replace(stage=OVER)
        tenure = self._tenure(record) if record.stage == CURRENT else None
        knows = _knows(state.workers[at], tenure, record.session, OVER)
        said = _end_of(state, record, now) if record.stage == CURRENT else None
        yield f"session {record.session} (rank {record.rank}) ends", _with(state, at, knows, over, said)

    def _pointers(self, state: State, session: int) -> list[int]:
        """The rank of the place's pointer, as the bus may show it: none, or the highest that it has had."""
        place = self._place(session)
        ranks = [r.rank for r in state.records if r.stage >= CURRENT and self._place(r.session) == place]
        return sorted({0, max(ranks, default=0)})

    def _rank(self, worker: Worker, session: int, now: int, known: int) -> int:
        return self._rules.rank(now * 10**6, max(known, current(worker, self._place(session))[0]))

    def _order(self, record: Record) -> tuple[int, str]:
        return record.rank, self._scope.sessions[record.session].id

    def _tenure(self, record: Record) -> Tenure:
        session = self._scope.sessions[record.session]
        return Tenure(place=session.place, session=session.id, rank=record.rank)

    def _place(self, session: int) -> str:
        return self._scope.sessions[session].place

    # What a gateway is given.

    def _gateway(self, state: State, at: int) -> Iterator[tuple[str, State]]:
        gateway = state.gates[at]
        if self._scope.restarts:
            yield "starts again", _with_gate(state, at, self._restarted(gateway, state.thief))
        if self._scope.imports:
            for other in state.gates[:at] + state.gates[at + 1 :]:
                after = self._gates.restart(gateway.gate, operators(state.thief), imports=other.gate)
                seen = _both(gateway.kept, other.kept)
                yield "imports the floors of the other", _with_gate(state, at, Gateway(after, seen, seen))
        if self._scope.disks and gateway.kept != gateway.seen:
            written = Gateway(self._gates.write(gateway.gate), gateway.seen, gateway.seen)
            yield "its floors are on disk", _with_gate(state, at, written)
        for said in sorted(state.said):
            after = self._gates.take(gateway.gate, self._statement(said)).gate
            seen = self._learned(state, gateway, after, said)
            yield _told(said), _with_gate(state, at, self._written(after, seen, gateway.kept))
        for sequence in (-command for command in state.commands if command < 0):
            yield self._revoked(state, at, OPERATOR, sequence)
        if self._scope.thief and state.thief != "out":
            yield self._revoked(state, at, THIEF, FOREVER)

    def _restarted(self, gateway: Gateway, thief: str) -> Gateway:
        return Gateway(self._gates.restart(gateway.gate, operators(thief)), gateway.kept, gateway.kept)

    def _written(self, gate: int, seen: Seen, kept: Seen) -> Gateway:
        """Where disks are not the subject, what is taken is on disk at once."""
        return Gateway(gate, seen, kept) if self._scope.disks else Gateway(self._gates.write(gate), seen, seen)

    def _revoked(self, state: State, at: int, signer: bytes, sequence: int) -> tuple[str, State]:
        gateway = state.gates[at]
        subject: Literal["app", "host"] = "app" if self._place(0).startswith("app.") else "host"
        after = self._gates.revoke(gateway.gate, revocation(subject, signer, sequence))
        revoked = dict(gateway.seen.revoked)
        revoked[signer] = max(revoked.get(signer, 0), sequence)
        seen = gateway.seen._replace(revoked=tuple(sorted(revoked.items())))
        return f"the Revoke of {sequence}", _with_gate(state, at, self._written(after, seen, gateway.kept))

    def _learned(self, state: State, gateway: Gateway, after: int, said: Said) -> Seen:
        seen = gateway.seen
        if said.ends:
            return seen._replace(ended=seen.ended | {said.session})
        if after == gateway.gate or self._statement(said) not in self._gates.held(after):
            return seen
        place = self._place(said.session)
        followed = {one for one in seen.taken if one != said.session and self._place(one) == place}
        policies = dict(seen.policies)
        policies.setdefault(said.policy, second(state.tick))
        return seen._replace(
            taken=seen.taken | {said.session}, out=seen.out | followed, policies=tuple(sorted(policies.items()))
        )

    def _statement(self, said: Said) -> Statement:
        return statement(self._scope.sessions[said.session], said)

    def fault(self, state: State) -> str | None:
        """Who is admitted that must not be, or kept out that must be let in."""
        return self._judge.fault(state)


def _order(gateway: Gateway) -> tuple[int, str]:
    return gateway.gate, str([[sorted(one) for one in seen] for seen in gateway[1:]])


def _both(one: Seen, other: Seen) -> Seen:
    """What is true of a gateway that has been told what another has seen."""
    revoked, policies = dict(one.revoked), dict(one.policies)
    for signer, sequence in other.revoked:
        revoked[signer] = max(revoked.get(signer, 0), sequence)
    for version, since in other.policies:
        policies[version] = min(policies.get(version, since), since)
    return Seen(
        taken=one.taken | other.taken,
        out=one.out | other.out,
        ended=one.ended | other.ended,
        revoked=tuple(sorted(revoked.items())),
        policies=tuple(sorted(policies.items())),
    )


def _with_gate(state: State, at: int, gateway: Gateway) -> State:
    return state._replace(gates=(*state.gates[:at], gateway, *state.gates[at + 1 :]))


def _with(state: State, at: int, worker: Worker, record: Record | None = None, said: Said | None = None) -> State:
    workers = (*state.workers[:at], worker, *state.workers[at + 1 :])
    records = state.records if record is None else state.records | {record}
    return state._replace(workers=workers, records=records, said=state.said if said is None else state.said | {said})


def _readings(state: State, worker: Worker) -> Iterator[tuple[int, int]]:
    """Under which command and which policy a worker may find the subject enrolled."""
    for command in range(worker.command, len(state.commands)):
        if state.commands[command] > 0:
            for policy in range(worker.policy, state.policy + 1):
                yield command, policy


def _knows(worker: Worker, tenure: Tenure | None, session: int, stage: int) -> Worker:
    current = {place: (rank, id) for place, rank, id in worker.current}
    if tenure is not None:
        current[tenure.place] = max((tenure.rank, tenure.session), current.get(tenure.place, (0, "")))
    return worker._replace(
        current=tuple(sorted((place, rank, id) for place, (rank, id) in current.items())),
        seen=tuple(sorted((dict(worker.seen) | {session: stage}).items())),
    )


def _lease(state: State, record: Record) -> Said | None:
    said = Said(False, record.session, record.rank, record.enrolled, record.policy, record.issued, 0)
    if any(one._replace(number=0) == said for one in state.said):
        return None
    return said._replace(number=_number(state, record))


def _number(state: State, record: Record) -> int:
    """A sequence that is the bus's choice, by which record it shows: of a tick's leases the one that is worse for the
    gateways comes later. By what a lease says and not by when it was said, or each order would be another state."""
    ranks = sorted({one.rank for one in state.records if one.session == record.session} | {record.rank})
    ahead = (record.issued - second(state.tick)) // TICK_S
    number = 0
    for digit in (state.tick, ranks.index(record.rank), ahead + 4, state.commands.index(record.enrolled)):
        number = 8 * number + digit
    return 8 * number + 8 - record.policy


def _end_of(state: State, record: Record, now: int) -> Said | None:
    if any(one.ends and one.session == record.session and one.rank == record.rank for one in state.said):
        return None
    return Said(True, record.session, record.rank, 0, 0, now, 1)


def _told(said: Said) -> str:
    what = "the end" if said.ends else f"the lease (enrolment {said.enrolled}, policy {said.policy}, {said.number})"
    return f"{what} of session {said.session} with rank {said.rank}"
