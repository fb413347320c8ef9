"""Brings one nginx in line with what it must hold, and keeps it there.

The order of a round is disk, nginx, confirmation: the floors are written (floors_writer.py), then nginx, and then what
is in both is reported. Killed in between, a worker has confirmed nothing that it does not know after its restart.

A round writes the keys that changed. It compares everything where nginx has a new epoch (it has lost its memory), after
a step of the clock, and once in every `reconcile_s`. An idle reconciler probes the epoch, and looks for a step, every
second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from attestgate.manager.gateway.break_glass import BreakGlassFolder
from attestgate.manager.gateway.desired_state import DesiredState, Round
from attestgate.manager.gateway.dictionary import Dictionary, NginxError
from attestgate.manager.gateway.entries import DictionaryChanges, entries_of
from attestgate.manager.gateway.events import GatewayEvents
from attestgate.manager.gateway.floors import Revocation
from attestgate.manager.gateway.floors_writer import FloorsWriter
from attestgate.manager.gateway.map_file import MapFile
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.reports import Reporter
from attestgate.manager.gateway.retries import log_retries
from attestgate.manager.gateway.revocations import BlockFolder
from attestgate.manager.local.clock_steps import ClockSteps
from attestgate.schemas.base import Refusal

_log = structlog.get_logger()
AdmissionStore: TypeAlias = Dictionary | MapFile
"""Where an nginx keeps who is admitted."""
_PROBE_S = 1.0
"""How often an idle worker asks nginx for its epoch: how long a restarted nginx stays empty."""


class Reconciler:
    """Makes `store` hold what `desired` says."""

    def __init__(
        self,
        store: AdmissionStore,
        desired: DesiredState,
        *,
        floors: FloorsWriter,
        blocks: BlockFolder | None,
        break_glass: BreakGlassFolder | None,
        reporter: Reporter,
        events: GatewayEvents,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        steps: ClockSteps,
        stepped: Callable[[], None],
        reconcile_s: float,
    ) -> None:
        """`stepped` is called after a step of the clock: statements that were refused by the wrong one have to be read
        again."""
        self._store = store
        self._desired = desired
        self._floors = floors
        self._blocks = blocks
        self._break_glass = break_glass
        self._reporter = reporter
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self._steps = steps
        self._stepped = stepped
        self._reconcile_s = reconcile_s
        self._epoch: str | None = None
        """The epoch in which everything was last compared."""
        self._reconcile_at = 0.0
        self._begun = False

    async def run(self) -> None:
        """Reconcile until cancelled. A failure of nginx is retried with a growing delay, and at once on a change."""
        probe_at = 0.0
        while True:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(NginxError),
                wait=wait_exponential_jitter(multiplier=0.05, max=2),
                sleep=self._desired.pause,
                before_sleep=self._failed,
            ):
                with attempt:
                    await self._reconcile()
            if time.monotonic() >= probe_at:
                # Not after every round: the renewals of a whole fleet come as hundreds of them.
                probe_at = time.monotonic() + _PROBE_S
                await self._collect_refusals()
                self._events.lapsed(self._desired.forget(int(self._steps.passed())))
            await self._desired.pause(_PROBE_S)

    async def _reconcile(self) -> None:
        """One round: write what changed, or compare everything if nginx's memory is new or the period is over."""
        # Cleared before anything is read: a statement that arrives during this round brings about the next one.
        self._desired.reset_wake()
        self._notice_step()
        self._read_blocks()
        await self._floors.write()
        epoch = (await self._store.health()).epoch
        at = int(self._clock())
        if self._break_glass is not None:
            self._desired.set_break_glass_entries(self._break_glass.entries(at))
        if not self._begun:
            self._begun = True
            self._reporter.begin(epoch, at, self._floors.found)
        new_epoch = epoch != self._epoch
        if new_epoch:
            self._desired.repeat()
        # Not before the bucket has been read: a key that is not known yet would be removed, and its owner cut off.
        everything = self._desired.complete and (new_epoch or time.monotonic() >= self._reconcile_at)
        batch = self._desired.begin_round(at, everything=everything)
        changes = await self._write(epoch, batch, everything=everything)
        # After a restart of this worker or of nginx, everything is reported again.
        keys = batch.keys if new_epoch else {*changes.put, *changes.remove, *batch.owed}
        confirmed = [revocation.digest for revocation in self._desired.confirm(batch)]
        self._reporter.report(batch.applied(keys), epoch, at, floors=batch.floors, revoked=confirmed)
        self._metrics.agreed([key for key in batch.keys if key not in batch.waiting], len(self._desired.leases))
        self._events.applied(changes)
        if everything:
            self._epoch = epoch
            self._reconcile_at = time.monotonic() + self._reconcile_s
            self._events.reconciled(changes)

    def _notice_step(self) -> None:
        """After a step of the clock everything is looked at again: leases, files, nginx, and the bucket."""
        by_s = self._steps.look()
        if by_s:
            self._events.clock_stepped(by_s)
            self._desired.look_again()
            self._reconcile_at = 0.0
            self._stepped()

    def _read_blocks(self) -> None:
        """Take the Revokes that were put into the folder: they need no bus."""
        for name, revocation in self._blocks.new() if self._blocks is not None else ():
            if self._desired.revoke(revocation):
                self._events.blocked(revocation)
            if not self._desired.floors.revoked(revocation.subject):
                self._events.refused(name, _outlived(revocation))

    async def _write(self, epoch: str, batch: Round, *, everything: bool) -> DictionaryChanges:
        try:
            if everything:
                changes = batch.changes_of((await self._store.contents()).entries)
            else:
                changes = batch.changes()
                if self._epoch != epoch and batch.revoked:
                    # What a worker before this one has put there is in no lease table until the bucket has been read.
                    left = entries_of(batch.revoked, (await self._store.contents()).entries)
                    changes = DictionaryChanges(remove=[*{*changes.remove, *left}], put=changes.put)
            # Removals first: they must not wait, and they make room.
            await self._store.remove(epoch, changes.remove)
            await self._store.put(epoch, changes.put)
        except BaseException:
            # Some of it may have been written: writing it again changes nothing.
            self._desired.undo(batch)
            raise
        return changes

    async def _collect_refusals(self) -> None:
        """Count and report the requests and connections that nginx has refused since it was last asked."""
        try:
            refusals = await self._store.refusals()
            for refusal in refusals:
                self._metrics.refused(refusal.verdict, refusal.times)
            self._events.requests_refused(refusals)
            rejections = await self._store.rejections()
            for rejection in rejections:
                self._metrics.rejected(rejection.port, rejection.limit, rejection.times)
            self._events.connections_rejected(rejections)
        except NginxError as error:
            _log.warning("what nginx refused is not known", problem=str(error))

    def _failed(self, state: RetryCallState) -> None:
        log_retries("updating nginx failed, retrying")(state)
        if state.attempt_number == 1 and state.outcome is not None:
            self._events.nginx_failed(str(state.outcome.exception()))


def _outlived(revocation: Revocation) -> Refusal:
    return Refusal.because(
        "revoke.older",
        revocation.subject,
        expected="a Revoke signed after the newest enrolment of its subject",
        found=f"sequence {revocation.sequence}, and an enrolment with a higher one",
        action="if it must go nevertheless, set the operator's clock and sign again",
    )
