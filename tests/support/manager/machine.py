"""Whatever order things happen in: rules for a hypothesis machine over a whole deployment, and what must always hold.

Agents, workers and the gateway run for real; between any two of their messages the bus's operator may deliver, repeat,
swap, lose and replay, put a bucket back in time, let time pass; workers die; agents stop; operators revoke.
"""

from __future__ import annotations

from collections import Counter as Count
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from attestgate.bus import subjects
from attestgate.bus.api import BusError
from attestgate.bus.memory.bucket import BucketState
from attestgate.manager.events.observer import Observer
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import HostLease, Lease, Withdrawal
from attestgate.schemas.enrolment import Action, Enrol, RecheckNow, Revoke
from attestgate.schemas.settings import Timing
from tests.support.manager.deployment import Agent, Deployment, deployed
from tests.support.manager.mortal import Counter, MortalBus
from tests.support.manager.quiet_loop import QuietLoop
from tests.support.manager.wire import Held
from tests.support.manager.world import LISTS, OPERATOR, World

HOSTS = {"h1": "machine-a", "h2": "machine-b"}
APPS = {"a1": "h1", "a2": "h2"}
TIMING = Timing(lease_s=90, recheck_s=40, evidence_window_s=45, skew_s=5, certificate_s=3600)
"""What a dead worker had in hand is offered again after 30 s: well within a window."""
HELD = (f"{subjects.IN}.", f"{subjects.OUT}.")
REPLAYED = (*HELD, f"{subjects.WORK}.", f"{subjects.DUE}.", f"{subjects.OPERATOR}.")
ONCE = ("granted", "trusted", "proven", "certified", "admitted")
LIVE = (State.TRUSTED, State.CERTIFIED, State.ADMITTED, State.RECHECKING)
UNSEEN_BY_ANOTHER = ("enrolment", "policies")
"""What only those workers notice going back that have seen the newer: put back only where there is one worker."""
SUBJECTS = st.sampled_from([*HOSTS, *APPS])


class Faults(Observer):
    """The messages that made a worker fail."""

    def __init__(self) -> None:
        self.subjects: list[str] = []

    def handled(self, subject: str, seconds: float, result: str) -> None:
        if result == "fault":
            self.subjects.append(subject)


class Chaos(RuleBasedStateMachine):
    """One deployment. `bad_since` says from when on a subject can give no good answer."""

    def __init__(self, world: World, folder: Path) -> None:
        super().__init__()
        self.world, self.folder = world, folder
        self.loop = QuietLoop()
        self.stack = AsyncExitStack()
        self.held: list[Held] = []
        self.past: defaultdict[str, list[BucketState]] = defaultdict(list)
        self.turned_back = False
        self.counters: dict[str, Counter] = {}
        self.faults = Faults()
        self.agents: dict[str, Agent] = {}
        self.stopped: dict[str, int] = {}
        self.drifted: int | None = None
        self.orders: dict[int, Action] = {}
        self.newest: dict[str, int] = {}
        self.revoked: dict[str, int] = {}
        self.heard = 0
        self.revisions: dict[str, int] = {}
        self.statements: dict[str, Lease | HostLease | Withdrawal] = {}

    # How it is done

    def settle(self, work: Any = None) -> Any:
        """Do something, and whatever follows from it; a worker that died of it is started again."""
        result = self.loop.finish(work or _nothing())
        for name, task in zip(list(self.counters), list(self.site._running), strict=True):
            if task.done():
                assert task.exception() is not None
                self.site._running.remove(task)
                del self.counters[name]
                self._start_worker(name)
        self.loop.finish(_nothing())
        return result

    def _start_worker(self, name: str) -> None:
        self.counters[name] = Counter(None)
        worker = self.loop.finish(_call(self.site.run, MortalBus(self.site.wire.connect(), self.counters[name]), name))
        worker._observer = self.faults

    def _meddle(self, subject: str, data: bytes) -> Iterable[Held]:
        if not subject.startswith(HELD):
            return [(subject, data)]
        self.held.append((subject, data))
        return []

    def _inject(self, message: Held) -> None:
        async def inject() -> None:
            try:
                self.site.wire.inject(*message)
            except BusError:
                return  # the sender's subject is full: lost

        self.settle(inject())

    def _order(self, action: Action) -> None:
        async def publish() -> None:
            try:
                await self.site.bus.publish(subjects.operator(OPERATOR, action.do), self.site.command(action))
            except BusError:
                return

        sequence = int(self.site.clock() * 1_000_000) + self.site._sequence + 1
        self.orders[sequence] = action
        self.settle(publish())

    def _enrolment(self, id: str) -> Enrol:
        return self.site.host_enrolment(id, HOSTS[id]) if id in HOSTS else self.site.app_enrolment(id, APPS[id])

    def _start(self, id: str) -> None:
        self.stopped.pop(id, None)
        if id in HOSTS:
            self.agents[id] = self.settle(self.site.host(id, HOSTS[id], retry_s=600))
        else:
            host = APPS[id]
            self.agents[id] = self.settle(self.site.app(id, host, HOSTS[host], retry_s=600))

    def _write_list(self, name: str) -> None:
        self.site.measurement_list.write_bytes((LISTS / name).read_bytes())

    def _watch_bucket(self, name: str) -> None:
        bucket, past = self.site.wire.buckets[name], self.past[name]
        write = bucket._write

        def noted(key: str, value: bytes | None) -> int:
            past.append(bucket.snapshot())
            return write(key, value)

        bucket._write = noted  # type: ignore[method-assign]

    # What happens

    @initialize(workers=st.integers(1, 2), trusted=st.integers(0, 3), delivered=st.integers(0, 40))
    def begin(self, workers: int, trusted: int, delivered: int) -> None:
        """Mostly the applications start once their hosts are trusted, and are admitted after 24 messages."""
        self.alone = workers == 1
        self.site: Deployment = self.loop.finish(
            self.stack.enter_async_context(deployed(self.world, self.folder, timing=TIMING, workers=0))
        )
        for number in range(workers):
            self._start_worker(f"manager-{number}")
        self.settle(self.site.begin())
        for name in self.site.wire.buckets:
            self._watch_bucket(name)
        for id in (*HOSTS, *APPS):
            self._order(self._enrolment(id))
        self.site.wire.meddle = self._meddle
        for id in HOSTS:
            self._start(id)
        self.deliver(30 if trusted else 0)
        for id in APPS:
            self._start(id)
        self.deliver(delivered)

    @rule(count=st.integers(1, 30))
    def deliver_many(self, count: int) -> None:
        self.deliver(count)

    @rule(count=st.integers(1, 3))
    def deliver(self, count: int) -> None:
        for _ in range(count):
            if self.held:
                self._inject(self.held.pop(0))

    @rule()
    def deliver_twice(self) -> None:
        if self.held:
            message = self.held.pop(0)
            self._inject(message)
            self._inject(message)

    @rule(place=st.integers(0, 5))
    def swap_neighbours(self, place: int) -> None:
        if len(self.held) > 1:
            place %= len(self.held) - 1
            self.held[place], self.held[place + 1] = self.held[place + 1], self.held[place]

    @rule(place=st.integers(0, 5))
    def lose(self, place: int) -> None:
        if self.held:
            self.held.pop(place % len(self.held))

    @rule(which=st.integers(0, 2**20))
    def replay(self, which: int) -> None:
        said = [message for message in self.site.wire.seen if message[0].startswith(REPLAYED)]
        if said:
            self._inject(said[which % len(said)])

    @rule(seconds=st.sampled_from([1, 5, 5, 20, 31, 46, 96]))
    def wait(self, seconds: int) -> None:
        self.site.clock.at += seconds
        self.settle(_call(self.site.wire.tick))

    @rule(operations=st.integers(0, 20), name=st.integers(0, 1))
    def crash(self, operations: int, name: int) -> None:
        list(self.counters.values())[name % len(self.counters)].die_in(operations)

    @rule(
        bucket=st.sampled_from(["sessions", "sessions", "admissions", "operators", "summaries", *UNSEEN_BY_ANOTHER]),
        age=st.integers(0, 60),
    )
    def roll_back(self, bucket: str, age: int) -> None:
        states = self.past[bucket]
        if states and (self.alone or bucket not in UNSEEN_BY_ANOTHER):
            self.turned_back |= bucket == "sessions"
            if bucket == "sessions":
                self.revisions.clear()
            self.settle(_call(self.site.wire.restore, bucket, states[-1 - age % len(states)]))

    @rule(id=SUBJECTS)
    def recheck(self, id: str) -> None:
        self._order(RecheckNow(kind=_kind(id), id=id))

    @rule(id=SUBJECTS)
    def revoke(self, id: str) -> None:
        self._order(Revoke(kind=_kind(id), id=id, reason="test"))

    @rule(id=SUBJECTS)
    def enrol(self, id: str) -> None:
        self._order(self._enrolment(id))

    @rule(id=SUBJECTS)
    def stop(self, id: str) -> None:
        if id not in self.stopped:
            self.settle(self.agents[id].stop())
            self.stopped[id] = int(self.site.clock())

    @rule(id=SUBJECTS)
    def restart(self, id: str) -> None:
        self.stop(id)
        self._start(id)

    @rule(app=st.sampled_from([*APPS]))
    def restart_both(self, app: str) -> None:
        self.restart(APPS[app])
        self.deliver(10)
        self.restart(app)

    @rule(id=SUBJECTS, seconds=st.sampled_from([5, 20, 31]))
    def answer_and_stop(self, id: str, seconds: int) -> None:
        """What a subject said before it went bad is heard only later."""
        self.recheck(id)
        answer = subjects.inbound(_kind(id), _name(id), "recheck_evidence")
        for _ in range(30):
            if any(subject == answer for subject, _ in self.held):
                break
            self.deliver(1)
        self.stop(id)
        self.wait(seconds)
        self.deliver(len(self.held))

    @rule()
    def drift(self) -> None:
        if self.drifted is None:
            self._write_list("drift.bin")
            self.drifted = int(self.site.clock())

    @rule()
    def mend(self) -> None:
        self._write_list("clean.bin")
        self.drifted = None

    # What always holds

    @invariant()
    def nobody_is_leased_on_a_question_that_was_asked_after_it_went_bad(self) -> None:
        self._hear_orders()
        for statement in self.site.gateway.lease_table.values():
            if isinstance(statement, Withdrawal):
                continue
            assert statement.expires_at <= statement.issued_at + TIMING.lease_s
            asked = statement.app if isinstance(statement, Lease) else statement.host
            assert all(statement.issued_at <= since for since in self._bad_since(asked)), statement
            assert all(statement.expires_at <= since + TIMING.lease_s for since in self._bad_since(statement.host))

    @invariant()
    def nobody_passes_past_one_lease_after_it_went_bad(self) -> None:
        for app, host in APPS.items():
            if self.site.gateway.passes(app):
                for since in [*self._bad_since(app), *self._bad_since(host)]:
                    assert self.site.clock() < since + TIMING.lease_s

    @invariant()
    def what_a_gateway_knows_never_goes_back(self) -> None:
        for key, statement in self.site.gateway.lease_table.items():
            before = self.statements.get(key)
            if before is not None and statement != before and not isinstance(statement, Withdrawal):
                assert not isinstance(before, Withdrawal), f"{key} is leased again"
                assert statement.sequence > before.sequence, key
            self.statements[key] = statement

    @invariant()
    def nothing_is_done_twice(self) -> None:
        if not self.turned_back:
            done = Count((e.session, e.what) for e in {e.id: e for e in self.site.events}.values() if e.what in ONCE)
            assert not [step for step, times in done.items() if times > 1]

    @invariant()
    def one_session_speaks_for_an_id(self) -> None:
        if self.turned_back or any(self.site._waits(consumer) for consumer in self.site.wire.consumers.values()):
            return  # the order that ends the older one is under way
        live = Count(record.subject for record in self._records() if record.state in LIVE)
        assert not [id for id, sessions in live.items() if sessions > 1]

    @invariant()
    def no_revision_falls(self) -> None:
        for record in self._records():
            assert record.revision >= self.revisions.get(record.session, 0)
            self.revisions[record.session] = record.revision

    @invariant()
    def no_message_is_a_fault_and_no_agent_dies_of_one(self) -> None:
        assert self.faults.subjects == []
        assert not [id for id, agent in self.agents.items() if agent.task.done() and id not in self.stopped]
        assert not any(task.done() for task in self.site._tasks)

    def _records(self) -> list[HostRecord | AppRecord]:
        hosts = self.loop.finish(self.site.records(HostRecord))
        return [*hosts, *self.loop.finish(self.site.records(AppRecord))]

    def _bad_since(self, id: str) -> list[int]:
        times = [self.stopped.get(id), self.revoked.get(id), self.drifted if id in HOSTS else None]
        return [at for at in times if at is not None]

    def _hear_orders(self) -> None:
        """What operators have done so far, by the events that say so."""
        for event in self.site.events[self.heard :]:
            sequence = event.data.get("sequence")
            if event.kind != "op" or event.what != "applied" or not isinstance(sequence, int):
                continue
            action = self.orders.get(sequence)
            id = action.id if isinstance(action, Revoke) else action.subject.id if isinstance(action, Enrol) else ""
            if sequence > self.newest.get(id, 0):
                self.newest[id] = sequence
                self.revoked.pop(id, None)
                if isinstance(action, Revoke):
                    self.revoked[id] = event.at
        self.heard = len(self.site.events)

    # Afterwards

    def teardown(self) -> None:
        """Once nobody meddles any more, everybody is admitted again."""
        if not hasattr(self, "site"):
            self.loop.close()
            return
        try:
            self._recover()
        finally:
            self.loop.finish(self.stack.aclose())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _recover(self) -> None:
        self.site.wire.meddle = None
        for counter in self.counters.values():
            counter.die_in(None)
        for id in self.agents:
            self.stop(id)
        self.mend()
        for _ in range(8):
            self.wait(31)
        self.settle(self.site.order(self.world.policies.command(self.world.author, version=1)))
        self.settle(self.site.enrol_gateway())
        for id in (*HOSTS, *APPS):
            self.settle(self.site.order(self._enrolment(id)))
        for id in (*HOSTS, *APPS):
            self.wait(2)
            self._start(id)
        assert all(self.site.gateway.passes(app) for app in APPS), [
            f"{e.kind} {e.subject} {e.what} {e.data}" for e in self.site.events[-20:]
        ]


def _kind(id: str) -> Literal["host", "app"]:
    return "host" if id in HOSTS else "app"


def _name(id: str) -> str:
    """A subject's name on the bus."""
    return id if id in HOSTS else subjects.app_name(APPS[id], id)


async def _nothing() -> None:
    pass


async def _call(call: Any, *arguments: Any) -> Any:
    return call(*arguments)
