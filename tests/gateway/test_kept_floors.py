"""What counts while the disk is behind: what takes away does at once, what admits waits for its floors."""

from __future__ import annotations

import pytest

from attestgate.manager.gateway.desired_state import DesiredState
from attestgate.manager.gateway.entries import HostEntry
from attestgate.manager.gateway.floors import BelowFloor, Revocation, Source
from attestgate.manager.gateway.kept_floors import KeptFloors
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import Statement, revoke_key
from attestgate.schemas.enrolment import SubjectKind
from tests.support.gateway.statements import APP_TENURE, CERT, HOST, host, lease, withdrawal
from tests.support.threats import rows, threat

OPERATOR = b"\x01" * 32
LONGEST = 60
LATER = "0c" * 16


class Site:
    """A gateway whose disk is written when a test says so."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.floors = KeptFloors(operators={OPERATOR}, longest_lease_s=LONGEST, steady=lambda: self.passed)
        self.leases = LeaseTable(
            "sdn", floors=self.floors, longest_lease_s=LONGEST, remember_s=0, steady=lambda: self.passed
        )
        self.desired = DesiredState(self.leases, self.floors)

    def take(self, statement: Statement, at: int = 100) -> bool:
        return self.desired.take(statement, b"signed", at)

    def write(self) -> None:
        rows = self.floors.unwritten()
        self.floors.wrote(rows, self.floors.written.counter + len(rows))

    def admits(self, key: str = CERT, at: int = 100) -> bool:
        return self.desired.entry(key, at) is not None


@pytest.fixture
def site() -> Site:
    return Site()


def revoke(sequence: int, kind: SubjectKind = "app", id: str = "a1") -> Revocation:
    source = Source(key=revoke_key(kind, id, OPERATOR), value=f"{kind} {id} {sequence}".encode())
    return Revocation(
        subject_kind=kind, id=id, signer=OPERATOR, operator="ann", sequence=sequence, reason="stolen", source=source
    )


@threat(rows.GATEWAY_DISK)
def test_a_lease_counts_once_its_floors_are_on_disk(site: Site) -> None:
    assert site.take(lease()) and site.take(host())
    assert not site.admits(CERT) and not site.admits(HOST)
    site.write()
    assert site.admits(CERT) and site.admits(HOST)


@threat(rows.GATEWAY_DISK)
def test_a_renewal_needs_no_disk(site: Site) -> None:
    site.take(lease())
    site.write()
    site.take(lease(sequence=2, issued_at=110, expires_at=140), at=110)
    assert site.floors.unwritten() == []
    assert site.desired.until(CERT, 110) == 140


@threat(rows.GATEWAY_DISK)
def test_until_a_renewals_floors_are_on_disk_the_lease_before_it_goes_on_to_its_end(site: Site) -> None:
    site.take(lease())
    site.write()
    for sequence in (2, 3):
        site.take(lease(sequence=sequence, policy=2, issued_at=110, expires_at=140), at=110)
    assert site.desired.until(CERT, 110) == 130
    assert not site.admits(at=130)
    site.write()
    assert site.desired.until(CERT, 130) == 140


@threat(rows.SESSION_RETURNS)
def test_a_session_above_cuts_the_one_below_at_once_and_waits_itself(site: Site) -> None:
    site.take(lease())
    site.write()
    told: list[str] = []
    site.desired.on_change(told.append)
    site.take(lease(serial="02", rank=2, app_session=LATER))
    assert told == ["cert.02", CERT] or told == [CERT, "cert.02"]
    assert not site.admits(CERT) and not site.admits("cert.02")
    site.write()
    assert not site.admits(CERT) and site.admits("cert.02")


@threat(rows.SESSION_RETURNS)
def test_the_end_of_a_session_cuts_its_other_certificates_too(site: Site) -> None:
    site.take(lease())
    site.take(lease(serial="02"))
    site.write()
    site.take(withdrawal("cert.02", ends=APP_TENURE))
    assert not site.admits(CERT) and not site.admits("cert.02")


@threat(rows.SESSION_RETURNS)
def test_a_withdrawal_that_is_over_still_ends_its_session(site: Site) -> None:
    site.take(lease())
    site.write()
    assert site.take(withdrawal("cert.02", issued_at=1, until=2, ends=APP_TENURE), at=101)
    assert not site.admits(CERT, at=101)


@threat(rows.GATEWAY_KILLED, rows.GATEWAY_DISK)
def test_what_is_taken_away_goes_to_nginx_at_once_and_is_reported_once_it_is_on_disk(site: Site) -> None:
    site.take(lease())
    site.write()
    site.desired.begin_round(100, everything=True)
    site.take(withdrawal(ends=APP_TENURE), at=110)
    first = site.desired.begin_round(110, everything=False)
    assert first.changes().remove == [CERT] and first.applied([CERT]) == []
    for everything in (False, True):
        again = site.desired.begin_round(111, everything=everything)
        assert CERT not in again.owed and again.applied(again.keys) == []
    site.write()
    last = site.desired.begin_round(112, everything=True)
    assert last.owed == {CERT}
    assert [(item.key, item.state) for item in last.applied(last.owed)] == [(CERT, "withdrawn")]
    site.desired.undo(last)
    assert CERT in site.desired.begin_round(113, everything=False).owed, "nginx failed: it is still to be reported"
    assert site.desired.begin_round(114, everything=False).owed == set()


def test_a_lease_that_waits_leaves_what_nginx_holds_as_it_is(site: Site) -> None:
    """After a restart nginx may hold the lease before it, which runs out by itself."""
    site.take(lease())
    for everything in (False, True):
        waiting = site.desired.begin_round(100, everything=everything)
        assert waiting.keys == {CERT} and waiting.changes().remove == [] and waiting.applied([CERT]) == []
        assert waiting.changes_of({CERT: "an older lease", "cert.09": "a stray"}).remove == ["cert.09"]
    site.floors.take_revocation(revoke(9))
    cut = site.desired.begin_round(100, everything=True)
    assert cut.changes_of({CERT: "an older lease"}).remove == [CERT]


@threat(rows.GATEWAY_KILLED, rows.GATEWAY_DISK)
def test_a_revoke_cuts_at_once_and_is_confirmed_when_it_is_on_disk(site: Site) -> None:
    site.take(lease())
    site.write()
    site.desired.begin_round(100, everything=True)
    assert site.desired.revoke(revoke(5)) and not site.desired.revoke(revoke(5)) and not site.desired.revoke(revoke(4))
    assert site.desired.until(CERT, 100) == 0, "what WebSockets are bound to"
    cut = site.desired.begin_round(100, everything=False)
    assert cut.changes().remove == [CERT] and cut.revoked == {"app.a1"}
    assert site.desired.confirm(cut) == [] and cut.applied([CERT]) == []
    site.write()
    done = site.desired.begin_round(100, everything=False)
    assert site.desired.confirm(done) == [revoke(5)] and done.floors == site.floors.written.counter == 4
    assert site.desired.confirm(site.desired.begin_round(100, everything=False)) == []
    site.desired.repeat()
    assert site.desired.confirm(site.desired.begin_round(100, everything=True)) == [revoke(5)], "nginx is new"


def test_a_newer_revoke_in_the_middle_of_a_round_is_confirmed_by_the_next(site: Site) -> None:
    site.desired.revoke(revoke(5))
    site.write()
    begun = site.desired.begin_round(100, everything=False)
    site.desired.revoke(revoke(6))
    assert site.desired.confirm(begun) == [revoke(5)]
    site.write()
    assert site.desired.confirm(site.desired.begin_round(100, everything=False)) == [revoke(6)]


def test_a_revoke_ends_with_a_later_enrolment_alone(site: Site) -> None:
    site.desired.revoke(revoke(5))
    with pytest.raises(BelowFloor):
        site.take(lease(enrolled=5))
    site.take(lease(enrolled=6))
    site.write()
    assert site.admits()
    with pytest.raises(BelowFloor):
        site.take(lease(serial="02", enrolled=5))


@threat(rows.KEY_OPERATOR_GLASS)
def test_break_glass_loses_against_a_revoke_until_a_newer_enrolment_is_on_disk(site: Site) -> None:
    glass = {"host.glass": HostEntry(sequence=1, since=100, until=200, host="h1")}
    site.desired.set_break_glass_entries(dict(glass))
    assert site.admits("host.glass")
    told: list[str] = []
    site.desired.on_change(told.append)
    site.desired.revoke(revoke(5, "host", "h1"))
    assert told == ["host.glass"] and not site.admits("host.glass")
    site.write()
    site.desired.set_break_glass_entries(dict(glass))
    assert not site.admits("host.glass")
    site.take(host(enrolled=6))
    site.desired.set_break_glass_entries(dict(glass))
    assert not site.admits("host.glass")
    site.write()
    site.desired.set_break_glass_entries(dict(glass))
    assert site.admits("host.glass")


def test_a_lease_that_was_cut_does_not_lapse(site: Site) -> None:
    site.take(lease())
    site.take(host())
    site.write()
    site.desired.revoke(revoke(5))
    assert list(site.desired.forget(130)) == [HOST]


@threat(rows.ADMISSION_REPLAYED)
def test_what_is_read_back_from_disk_is_what_was_written(site: Site) -> None:
    site.take(lease())
    site.take(host())
    site.desired.revoke(revoke(5))
    rows = site.floors.unwritten()
    again = Site()
    again.floors.load(rows, 17)
    assert again.floors.unwritten() == [] and again.floors.written.counter == 17
    with pytest.raises(BelowFloor):
        again.take(lease())
    again.take(host())
    assert again.admits(HOST)


def test_a_row_that_changes_while_it_is_written_is_written_again(site: Site) -> None:
    site.take(lease())
    rows = site.floors.unwritten()
    site.take(lease(serial="02", rank=2, app_session=LATER))
    site.floors.wrote(rows, 3)
    assert [row.name for row in site.floors.unwritten()] == ["place app.a1.h1"]
    assert not site.admits("cert.02")
    site.write()
    assert site.admits("cert.02")


@threat(rows.ADMISSION_REPLAYED)
def test_a_newer_policy_ends_what_rests_on_an_older_one(site: Site) -> None:
    site.take(lease(expires_at=160))
    site.write()
    told: list[str] = []
    site.desired.on_change(told.append)
    site.take(host(policy=2, issued_at=90), at=95)
    assert set(told) == {HOST, CERT}
    assert site.desired.until(CERT, 100) == 95 + LONGEST
    site.passed = LONGEST
    assert not site.admits(at=100), "by the monotonic clock its time is over"
