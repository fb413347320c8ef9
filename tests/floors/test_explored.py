"""Every order in which a hostile bus can play what honest workers say: nobody who was cut off comes back, nobody honest
is locked out. And by each rule that was tempting and is unsound, somebody does."""

from __future__ import annotations

import pytest

from tests.support.floors import variants
from tests.support.floors.honest import SlowWorkers
from tests.support.floors.hostile import HostileBus
from tests.support.floors.search import explore
from tests.support.floors.values import Rules, Scope, Session
from tests.support.threats import rows, threat

MOST = 200_000
"""Far more states than any of these scopes has: each is looked at as a whole."""
EARLIER, LATER = "05" * 16, "0a" * 16
HOST, APP, ELSEWHERE = "host.h1", "app.a1.h1", "app.a1.h2"
ONE = (Session(LATER, HOST),)
TWO = (Session(LATER, HOST), Session(EARLIER, HOST))
"""Of the same rank the one that began first counts."""
APPS = (Session(LATER, APP), Session(EARLIER, ELSEWHERE))

SCOPES = {
    "one session follows another": Scope(TWO, ticks=1, gateways=1),
    "one session follows another, either may drift, and two gateways see it": Scope(TWO, drift=True),
    "one session follows another while a worker's clock is set": Scope(TWO, clocks=(2,), gateways=1),
    "a worker's clock is set, and all start again": Scope(ONE, clocks=(2,), drift=True, restarts=True),
    "a worker's clock is set, and leases run out": Scope(ONE, current=True, clocks=(2,), ticks=2, gateways=1),
    "an operator revokes and enrols anew": Scope(TWO, commands=1, gateways=1),
    "floors are imported": Scope(ONE, current=True, drift=True, commands=1, imports=True),
    "a gateway's disk is late": Scope(ONE, current=True, commands=2, disks=True, restarts=True, gateways=1),
    "a stolen operator's key comes and goes": Scope(ONE, current=True, commands=1, thief=True, restarts=True),
    "a newer policy comes into force": Scope(ONE, current=True, ticks=2, policies=2, gateways=1),
    "an application on two hosts": Scope(APPS, restarts=True),
}


@threat(rows.SESSION_RETURNS, rows.WORKERS_PARTED, rows.ADMISSION_REPLAYED)
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_whatever_the_bus_does(scope: Scope) -> None:
    explored = explore(HostileBus(scope), MOST)
    assert explored.fault is None, explored.told()
    assert explored.whole


def test_with_an_honest_bus_what_a_slow_worker_stores_changes_no_end() -> None:
    explored = explore(SlowWorkers(4), MOST)
    assert explored.fault is None, explored.told()
    assert explored.whole


RETURNS = "a session is admitted again after one that followed it"
ORDER = "a session is admitted after one that began later, by clocks that were right"
LOCKED_OUT = "an honest session is kept out, and so is the next"
ENDED = "a session is admitted after its end"
REVOKED = "a session is admitted by an enrolment that was revoked"
POLICY = "a session is admitted by an older policy, a lease after a newer one was seen"
UNSOUND = {
    "a rank that the bus counts": (Scope(TWO, ticks=1), Rules(rank=variants.counted), ORDER),
    "a rank that is the clock alone": (Scope(ONE, clocks=(2,)), Rules(rank=variants.timed), LOCKED_OUT),
    "a rank that is given when a session becomes current": (Scope(TWO, gateways=1), Rules("current"), RETURNS),
    "ranks without the session's id": (Scope(TWO), Rules(floors=variants.RankAlone), RETURNS),
    "a floor a subject": (Scope(APPS), Rules(floors=variants.OfSubjects), LOCKED_OUT),
    "a Revoke that is dropped with its key": (Scope(ONE, thief=True), Rules(floors=variants.ForgetsRevokes), REVOKED),
    "a Revoke that counts without its key": (
        Scope(ONE, thief=True),
        Rules(floors=variants.KeepsEveryRevoke),
        LOCKED_OUT,
    ),
    "an end that is forgotten with its tombstone": (
        Scope(ONE, ticks=3, clocks=(2,)),
        Rules(floors=variants.TombstonesOnly),
        ENDED,
    ),
    "a lease of an older policy that runs out": (
        Scope(ONE, current=True, ticks=2, policies=2, gateways=1),
        Rules(floors=variants.OlderPoliciesRunOut),
        POLICY,
    ),
    "what one worker learns of gateways is its own": (
        Scope(ONE, clocks=(2,), drift=True),
        Rules(tells_all=False),
        LOCKED_OUT,
    ),
}


@pytest.mark.parametrize(("scope", "rules", "fault"), UNSOUND.values(), ids=UNSOUND)
def test_what_is_unsound_is_found(scope: Scope, rules: Rules, fault: str) -> None:
    assert explore(HostileBus(scope, rules), MOST).fault == fault


def test_a_renewal_without_compare_and_set_is_found() -> None:
    explored = explore(SlowWorkers(4, compares=False), MOST)
    assert explored.fault == "a session is admitted by a gateway that has read everything since it ended"
