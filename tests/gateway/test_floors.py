"""The floors: every rule by itself, and then all of them under statements in any order, put back in any order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.gateway.floors import (
    MAX_NEWER,
    AnyLease,
    BelowFloor,
    Floors,
    PolicyFloor,
    Revocation,
    Row,
    Source,
)
from attestgate.schemas.admission import HostLease, Lease, Statement, Tenure, Withdrawal, revoke_key
from attestgate.schemas.enrolment import SubjectKind
from tests.support.gateway.statements import APP_TENURE, CERT, HOST, HOST_TENURE, host, lease, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

LONGEST = 60
OPERATOR, OTHER = b"\x01" * 32, b"\x02" * 32
LATER, EARLIER = "0c" * 16, "01" * 16


def floors(*rows: Row, operators: frozenset[bytes] = frozenset({OPERATOR})) -> Floors:
    return Floors(rows, operators=operators, longest_lease_s=LONGEST)


def take(book: Floors, statement: Statement, at: int = 100, steady: float = 0.0) -> list[Row]:
    if not isinstance(statement, Withdrawal):
        book.check(statement, at, steady)
    return book.take(statement, b"signed", at, steady)


def refused(book: Floors, statement: AnyLease, at: int = 100, steady: float = 0.0) -> str:
    with pytest.raises(BelowFloor) as refusal:
        book.check(statement, at, steady)
    return refusal_code(refusal)


def revoke(sequence: int, kind: SubjectKind = "app", id: str = "a1", signer: bytes = OPERATOR) -> Revocation:
    source = Source(key=revoke_key(kind, id, signer), value=b"signed")
    return Revocation(
        subject_kind=kind, id=id, signer=signer, operator="op1", sequence=sequence, reason="stolen", source=source
    )


def test_a_lease_raises_the_floors_of_its_place_its_subject_and_the_policy() -> None:
    book = floors()
    rows = take(book, lease(rank=7, enrolled=8, policy=9))
    assert [row.name for row in rows] == ["place app.a1.h1", "enrolled app.a1", "policy"]
    assert list(book.rows()) == rows and book.counter == 3
    assert [row.name for row in take(book, host(rank=7, enrolled=8, policy=9))] == ["place host.h1", "enrolled host.h1"]
    assert book.counter == 5


def test_a_renewal_changes_nothing() -> None:
    book = floors()
    take(book, lease())
    assert take(book, lease(sequence=2, issued_at=110, expires_at=140)) == [] and book.counter == 3


@threat(rows.SESSION_RETURNS)
@pytest.mark.parametrize("statement", [lease(), host()], ids=["certificate", "host"])
def test_of_two_sessions_of_a_place_the_one_with_the_higher_rank_counts(statement: AnyLease) -> None:
    book = floors()
    take(book, statement)
    field = "app_session" if isinstance(statement, Lease) else "host_session"
    take(book, statement.model_copy(update={"rank": 2, field: LATER}))
    assert not book.stands(statement)
    assert refused(book, statement) == "admission.rank"


@threat(rows.SESSION_RETURNS)
def test_of_two_sessions_with_one_rank_the_higher_session_counts() -> None:
    book = floors()
    take(book, lease())
    assert refused(book, lease(app_session=EARLIER)) == "admission.rank"
    take(book, lease(app_session=LATER))
    assert refused(book, lease()) == "admission.rank"


def test_the_other_places_of_an_application_have_floors_of_their_own() -> None:
    book = floors()
    take(book, lease(rank=9))
    elsewhere = lease(host="h2", identity="spiffe://sdn.example.org/host/h2/app/a1")
    take(book, elsewhere)
    assert book.stands(elsewhere)


@threat(rows.SESSION_RETURNS)
@pytest.mark.parametrize(
    ("statement", "ends"), [(lease(), APP_TENURE), (host(), HOST_TENURE)], ids=["certificate", "host"]
)
def test_a_session_that_was_ended_gets_no_lease_again(statement: AnyLease, ends: Tenure) -> None:
    book = floors()
    take(book, statement)
    assert [row.name for row in take(book, withdrawal(statement.key, ends=ends))] == [f"place {ends.place}"]
    assert not book.stands(statement)
    assert refused(book, statement) == "admission.ended"
    assert refused(book, statement.model_copy(update={"rank": 99})) == "admission.ended", "one session, one rank"
    newer = {"rank": 2, "app_session" if isinstance(statement, Lease) else "host_session": LATER}
    take(book, statement.model_copy(update=newer))
    assert refused(book, statement) == "admission.rank"


@threat(rows.SESSION_RETURNS)
def test_a_session_that_was_ended_before_anything_was_heard_of_it() -> None:
    book = floors()
    take(book, withdrawal(ends=APP_TENURE))
    assert refused(book, lease()) == "admission.ended"


def test_a_retired_certificate_ends_no_session() -> None:
    book = floors()
    take(book, lease())
    assert take(book, withdrawal()) == []
    assert book.stands(lease(serial="02"))


def test_the_end_of_a_session_that_was_superseded_changes_nothing() -> None:
    book = floors()
    take(book, lease(rank=2, app_session=LATER))
    assert take(book, withdrawal(ends=APP_TENURE)) == []


@threat(rows.ADMISSION_REPLAYED)
def test_an_older_enrolment_is_refused_and_one_that_is_held_runs_out() -> None:
    book = floors()
    take(book, lease(enrolled=5))
    take(book, lease(enrolled=6, host="h2", identity="spiffe://sdn.example.org/host/h2/app/a1"))
    assert refused(book, lease(enrolled=5)) == "admission.enrolled"
    assert book.stands(lease(enrolled=5))


@threat(rows.ADMISSION_REPLAYED)
def test_an_older_policy_has_the_length_of_a_lease_to_run_out() -> None:
    book = floors()
    take(book, lease(policy=2), at=100)
    take(book, host(policy=1), at=100 + LONGEST - 1)
    assert refused(book, host(policy=1), at=100 + LONGEST) == "admission.policy"
    assert book.stands(host(policy=1))


@threat(rows.CLOCK_SET)
def test_no_clock_that_is_set_back_gives_an_older_policy_more_time() -> None:
    book = floors()
    take(book, lease(policy=2), at=100, steady=7.0)
    book.check(host(policy=1), 50, 7.0 + LONGEST - 1)
    assert refused(book, host(policy=1), at=50, steady=7.0 + LONGEST) == "admission.policy"


def test_a_policy_that_has_had_its_time_gets_no_more_by_other_changes() -> None:
    book = floors()
    take(book, lease(policy=2), at=100)
    take(book, lease(policy=3), at=150)
    take(book, lease(policy=4), at=155)
    take(book, host(policy=1), at=159)
    assert refused(book, host(policy=1), at=160) == "admission.policy"
    take(book, host(policy=2), at=209)
    assert refused(book, host(policy=2), at=210) == "admission.policy"
    take(book, lease(policy=5), at=300)
    assert refused(book, host(policy=3), at=300) == "admission.policy"
    take(book, host(policy=4), at=300)


def test_a_lease_that_is_held_ends_when_the_policy_that_it_rests_on_does() -> None:
    book = floors()
    take(book, lease(policy=2), at=100, steady=7.0)
    assert book.policy_until(2, 7.0) is None
    assert book.policy_until(1, 7.0) == 100 + LONGEST
    assert book.policy_until(1, 7.0 + LONGEST) == 0, "whatever the clock says"
    take(book, lease(policy=3), at=170, steady=77.0)
    assert (book.policy_until(1, 77.0), book.policy_until(2, 77.0)) == (0, 170 + LONGEST)


def test_of_many_policies_within_a_lease_the_oldest_come_to_their_time() -> None:
    book = floors()
    for version in range(2, 100):
        take(book, lease(policy=version), at=100 + version // 2)
    (row,) = [row for row in book.rows() if isinstance(row, PolicyFloor)]
    assert len(row.newer) == MAX_NEWER and row.highest.version == 99
    assert refused(book, host(policy=1), at=101 + LONGEST) == "admission.policy"
    assert refused(book, host(policy=98), at=149 + LONGEST) == "admission.policy"
    take(book, host(policy=99), at=149 + LONGEST)


@threat(rows.ADMISSION_REPLAYED)
def test_a_restart_gives_an_older_policy_no_second_time() -> None:
    book = floors()
    rows = take(book, lease(policy=2), at=100)
    again = Floors(rows, operators=[], longest_lease_s=LONGEST, steady=1000.0)
    assert refused(again, host(policy=1), at=160, steady=1000.0) == "admission.policy"


@threat(rows.ADMISSION_REPLAYED)
def test_a_revoke_cuts_and_only_a_later_enrolment_passes() -> None:
    book = floors()
    take(book, lease(enrolled=5))
    assert book.take_revocation(revoke(6)) == [revoke(6)]
    assert not book.stands(lease(enrolled=5))
    assert refused(book, lease(enrolled=6)) == "admission.revoked"
    assert book.in_force("app.a1") == [revoke(6)] == list(book.all_in_force())
    take(book, lease(enrolled=7))
    assert book.in_force("app.a1") == [] == list(book.all_in_force())
    assert refused(book, lease(enrolled=5)) == "admission.revoked"


def test_a_revoke_of_a_host_is_not_one_of_an_application_of_the_same_name() -> None:
    book = floors()
    book.take_revocation(revoke(6, "host", "h1"))
    assert refused(book, host()) == "admission.revoked"
    book.check(lease(), 100, 0.0)
    book.take_revocation(revoke(6, "gateway", "a1"))
    book.check(lease(), 100, 0.0)


def test_of_each_operator_the_newest_revoke_is_kept() -> None:
    book = floors(operators=frozenset({OPERATOR, OTHER}))
    book.take_revocation(revoke(6))
    assert book.take_revocation(revoke(5)) == [] == book.take_revocation(revoke(6))
    assert book.take_revocation(revoke(4, signer=OTHER)) == [revoke(4, signer=OTHER)]
    assert refused(book, lease(enrolled=6)) == "admission.revoked"
    assert book.counter == 2


@threat(rows.KEY_OPERATOR)
def test_the_revoke_of_a_key_that_was_taken_out_of_the_settings_is_kept_but_does_not_count() -> None:
    book = floors(revoke(6, signer=OTHER))
    book.check(lease(), 100, 0.0)
    assert book.in_force("app.a1") == [] and list(book.rows()) == [revoke(6, signer=OTHER)]
    assert refused(floors(*book.rows(), operators=frozenset({OTHER})), lease()) == "admission.revoked"


@threat(rows.WORKERS_PARTED)
def test_a_refusal_encloses_what_set_the_floor() -> None:
    book = floors()
    book.take(lease(rank=2, app_session=LATER), b"the newer one", 100, 0.0)
    with pytest.raises(BelowFloor) as refusal:
        book.check(lease(), 100, 0.0)
    assert refusal.value.source == Source(key=CERT, value=b"the newer one")
    book.take_revocation(revoke(6))
    with pytest.raises(BelowFloor) as refusal:
        book.check(lease(), 100, 0.0)
    assert refusal.value.source.key == revoke(6).key


def test_what_floors_cover() -> None:
    book, written = floors(), floors()
    for statement in (lease(), host(), withdrawal(ends=APP_TENURE), withdrawal(HOST, ends=HOST_TENURE)):
        rows = take(book, statement)
        assert not written.cover(statement)
        written.put(rows)
        assert written.cover(statement)
    assert written.cover(withdrawal()), "a retired certificate raises nothing"
    assert written.cover(lease()), "what was ended is above it"
    book.take_revocation(revoke(6))
    assert not written.holds(revoke(6))
    written.put([revoke(6)])
    assert written.holds(revoke(6)) and written.holds(revoke(5)) and not written.holds(revoke(7))
    assert written.counter == book.counter


TENURES = [(APP_TENURE.session, 1), (EARLIER, 2), (LATER, 2), ("0d" * 16, 3)]
"""Sessions, each with its one rank."""
numbers = st.integers(1, 4)
leases = st.builds(
    lambda tenure, enrolled, policy, place: lease(
        app_session=tenure[0],
        rank=tenure[1],
        enrolled=enrolled,
        policy=policy,
        host=place,
        identity=f"spiffe://sdn.example.org/host/{place}/app/a1",
    ),
    st.sampled_from(TENURES),
    numbers,
    numbers,
    st.sampled_from(["h1", "h2"]),
)
hosts = st.builds(
    lambda tenure, enrolled, policy: host(host_session=tenure[0], rank=tenure[1], enrolled=enrolled, policy=policy),
    st.sampled_from(TENURES),
    numbers,
    numbers,
)
ends = st.builds(
    lambda place, tenure: withdrawal(ends=Tenure(place=place, session=tenure[0], rank=tenure[1])),
    st.sampled_from(["app.a1.h1", "app.a1.h2", "host.h1"]),
    st.sampled_from(TENURES),
)
subjects: st.SearchStrategy[tuple[SubjectKind, str]] = st.sampled_from([("app", "a1"), ("host", "h1")])
revokes = st.builds(
    lambda subject, sequence, signer: revoke(sequence, subject[0], subject[1], signer),
    subjects,
    st.integers(1, 3),
    st.sampled_from([OPERATOR, OTHER]),
)
steps = st.lists(st.tuples(st.one_of(leases, hosts, ends, revokes), st.integers(0, 40)), max_size=40)


@dataclass
class Seen:
    """All that a gateway took, with no floors: what the rules are about."""

    leases: list[tuple[AnyLease, int]]
    ended: list[Tenure]
    revokes: list[Revocation]

    def allows(self, one: AnyLease, at: int) -> bool:
        """The rules, said once more over the whole of what was taken."""
        tenure = one.tenure
        mine = [other for other, _ in self.leases if type(other) is type(one)]
        places = [other.tenure for other in mine] + self.ended
        subject = ("app", one.app) if isinstance(one, Lease) else ("host", one.host)
        return not (
            any((t.rank, t.session) > (tenure.rank, tenure.session) for t in places if t.place == tenure.place)
            or tenure in self.ended
            or any(other.enrolled > one.enrolled for other in mine)
            or any(other.policy > one.policy and at - since >= LONGEST for other, since in self.leases)
            or any(
                (r.subject_kind, r.id) == subject and r.sequence >= one.enrolled and r.signer == OPERATOR
                for r in self.revokes
            )
        )


@threat(rows.ADMISSION_REPLAYED)
@given(steps=steps)
def test_what_is_taken_is_what_the_rules_allow_by_all_that_was_seen(
    steps: list[tuple[Statement | Revocation, int]],
) -> None:
    """Compacted to a row a place, subject and key, the floors refuse all that the whole history would."""
    book, seen, at = floors(), Seen([], [], []), 100
    for step, later in steps:
        at += later
        if isinstance(step, Revocation):
            book.take_revocation(step)
            seen.revokes.append(step)
        elif isinstance(step, Withdrawal):
            take(book, step, at, float(at))
            assert step.ends is not None
            seen.ended.append(step.ends)
        else:
            try:
                take(book, step, at, float(at))
            except BelowFloor:
                assert not seen.allows(step, at)
                continue
            assert seen.allows(step, at)
            seen.leases.append((step, at))


@given(steps=steps)
def test_floors_only_rise_and_a_copy_by_rows_is_the_same(steps: list[tuple[Statement | Revocation, int]]) -> None:
    book, copy, at = floors(), floors(), 100
    for step, later in steps:
        at += later
        before = {row.name: row for row in book.rows()}
        try:
            rows = book.take_revocation(step) if isinstance(step, Revocation) else take(book, step, at, float(at))
        except BelowFloor:
            rows = []
        assert all(copy.holds(row) is False for row in rows if isinstance(row, Revocation))
        copy.put(rows, float(at))
        assert list(copy.rows()) == list(book.rows()) and copy.counter == book.counter
        for row in rows:
            assert row != before.get(row.name)
            if isinstance(row, PolicyFloor) and isinstance(old := before.get(row.name), PolicyFloor):
                assert row.highest.version > old.highest.version
                assert (row.least.version if row.least else 0) >= (old.least.version if old.least else 0)


@threat(rows.SESSION_RETURNS)
@given(steps=steps, again=st.randoms())
def test_nothing_that_was_ended_comes_back_in_any_order(
    steps: list[tuple[Statement | Revocation, int]], again: object
) -> None:
    """The bus plays everything once more, shuffled: what does not stand at the end is not taken again."""
    book, at = floors(), 100
    for step, later in steps:
        at += later
        if isinstance(step, Revocation):
            book.take_revocation(step)
        elif isinstance(step, Withdrawal):
            take(book, step, at, float(at))
        else:
            try:
                take(book, step, at, float(at))
            except BelowFloor:
                continue
    again_played = [step for step, _ in steps if isinstance(step, (Lease, HostLease))]
    fallen = [one for one in again_played if not book.stands(one)]
    again.shuffle(again_played)  # type: ignore[attr-defined]  # a random.Random, by hypothesis
    for one in again_played:
        if one in fallen:
            with pytest.raises(BelowFloor):
                book.check(one, at, float(at))
        else:
            try:
                take(book, one, at, float(at))
            except BelowFloor:
                continue


def played(steps: list[tuple[Statement | Revocation, int]]) -> Floors:
    """The floors after these."""
    book, at = floors(), 100
    for step, later in steps:
        at += later
        if isinstance(step, Revocation):
            book.take_revocation(step)
            continue
        try:
            take(book, step, at, float(at))
        except BelowFloor:
            continue
    return book


def said(book: Floors) -> dict[str, object]:
    """What the floors say, whoever said it."""
    return {
        row.name: row.model_dump(
            exclude={"source": True, "least": {"source", "seen_at"}, "newer": {"__all__": {"source"}}}
        )
        for row in book.rows()
    }


@threat(rows.KEY_MANAGER_FLOORS)
@pytest.mark.parametrize("field", ["rank", "enrolled", "policy"])
def test_a_stolen_managers_lease_of_the_highest_numbers_shuts_out_those_after_it(field: str) -> None:
    highest, code = 2**63 - 1, f"admission.{field}"
    book = floors()
    take(book, lease(app_session=EARLIER, **{field: highest}))
    honest = lease(issued_at=100 + LONGEST, expires_at=130 + LONGEST, **{field: highest - 1})
    assert refused(book, honest, at=100 + LONGEST) == code
    again = Floors(book.rows(), operators=[], longest_lease_s=LONGEST, steady=0.0)
    assert refused(again, honest, at=100 + LONGEST) == code, "also by a worker that is started anew"
    take(floors(), honest, at=100 + LONGEST)


@threat(rows.FLOORS_LOST)
@given(one=steps, other=steps)
def test_merging_is_the_maximum_of_both(
    one: list[tuple[Statement | Revocation, int]], other: list[tuple[Statement | Revocation, int]]
) -> None:
    """What either gateway refuses for a place, a subject or a Revoke, the merged floors do."""
    first, second = played(one), played(other)
    there, here = played(one), played(other)
    there.merge(second.rows())
    here.merge(first.rows())
    assert said(there) == said(here)
    assert there.merge(second.rows()) == [] == there.merge(first.rows()), "nothing is merged twice"
    for step, _ in one + other:
        if isinstance(step, (Lease, HostLease)) and not (first.stands(step) and second.stands(step)):
            assert not there.stands(step)
