"""The lease table: every rule by itself, and then all of them under statements in any order."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.gateway.entries import CertificateEntry, HostEntry, difference
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import Lease, Statement, Withdrawal
from attestgate.schemas.base import Refusal
from tests.support.gateway.statements import CERT, HOST, FloorsInMemory, host, lease, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

LONGEST, SKEW = 60, 5


def table() -> LeaseTable:
    return LeaseTable("sdn", floors=FloorsInMemory(), longest_lease_s=LONGEST, skew_s=SKEW)


def take(book: LeaseTable, statement: Statement, at: int) -> bool:
    return bool(book.take(statement, b"signed", at))


def not_taken(book: LeaseTable, statement: Statement, at: int) -> str:
    before = dict(book)
    with pytest.raises(Refusal) as refusal:
        take(book, statement, at)
    assert dict(book) == before
    return refusal_code(refusal)


def test_a_lease_is_an_entry_until_its_end() -> None:
    book = table()
    assert take(book, lease(), 100) and take(book, host(), 100)
    assert book.entry(CERT, 129) == CertificateEntry(
        sequence=1,
        since=100,
        until=130,
        sha256="ab" * 32,
        identity="spiffe://sdn.example.org/host/h1/app/a1",
        host_key=HOST,
        integrity="anchored",
        marks="",
        allow=["* /**"],
    )
    assert book.entry(HOST, 129) == HostEntry(sequence=1, since=100, until=130, host="h1")
    assert book.entry(CERT, 130) is None and book.entry(HOST, 130) is None
    assert book.entry("cert.02", 100) is None


@threat(rows.KEY_MANAGER_GATEWAY)
def test_no_lease_is_longer_than_the_longest() -> None:
    book = table()
    take(book, lease(expires_at=10_000), 100)
    entry = book.entry(CERT, 100)
    assert entry is not None and entry.until == 100 + LONGEST
    assert not_taken(table(), lease(expires_at=10_000), 100 + LONGEST) == "admission.expired"


def test_another_set_of_gateways() -> None:
    assert not_taken(table(), lease(gateways="other"), 100) == "admission.set"


@pytest.mark.parametrize("statement", [lease(), host()], ids=["certificate", "host"])
def test_issued_ahead_of_the_clock(statement: Statement) -> None:
    assert not_taken(table(), statement, 100 - SKEW - 1) == "admission.future"
    assert take(table(), statement, 100 - SKEW)


@pytest.mark.parametrize("statement", [lease(), host()], ids=["certificate", "host"])
def test_over(statement: Statement) -> None:
    assert not_taken(table(), statement, 130) == "admission.expired"
    assert take(table(), statement, 129)


def test_the_sequence_rises() -> None:
    book = table()
    take(book, lease(sequence=5), 100)
    assert not take(book, lease(sequence=5), 100), "the same again is nothing new"
    assert not_taken(book, lease(sequence=4), 100) == "admission.sequence"
    assert not_taken(book, lease(sequence=5, expires_at=140), 100) == "admission.sequence"
    assert take(book, lease(sequence=6, expires_at=140), 100)


def test_a_shorter_lease_does_not_let_an_older_one_back_in() -> None:
    book = table()
    take(book, lease(sequence=1, expires_at=150), 100)
    take(book, lease(sequence=2, expires_at=120), 100)
    assert list(book.forget(120)) == []
    assert not_taken(book, lease(sequence=1, expires_at=150), 121) == "admission.sequence"
    assert list(book.forget(150)) == [CERT]
    assert not_taken(book, lease(sequence=1, expires_at=150), 150) == "admission.expired"


@pytest.mark.parametrize("sequence", [1, 2, 9])
def test_a_withdrawal_is_final_whatever_its_sequence(sequence: int) -> None:
    book = table()
    take(book, lease(sequence=5), 100)
    assert take(book, withdrawal(sequence=sequence), 110)
    assert book.entry(CERT, 110) is None
    assert not_taken(book, lease(sequence=5), 110) == "admission.withdrawn"
    assert not_taken(book, lease(sequence=10, issued_at=111, expires_at=140), 111) == "admission.withdrawn"


@threat(rows.ADMISSION_REPLAYED)
def test_a_withdrawal_outlives_every_lease_signed_before_it() -> None:
    book = table()
    take(book, withdrawal(issued_at=110, until=111), 110)
    longest = lease(issued_at=110 + SKEW, expires_at=10_000, sequence=9)
    assert not_taken(book, longest, 110 + SKEW) == "admission.withdrawn"
    assert list(book.forget(110 + LONGEST + SKEW - 1)) == []
    assert CERT in book
    assert list(book.forget(110 + LONGEST + SKEW)) == []
    assert CERT not in book
    assert not_taken(book, longest, 110 + LONGEST + SKEW) == "admission.expired"


def test_an_old_withdrawal_is_over() -> None:
    assert not_taken(table(), withdrawal(), 110 + LONGEST + SKEW) == "admission.expired"


@pytest.mark.parametrize("statement", [lease(), host()], ids=["certificate", "host"])
def test_a_lease_that_a_clock_set_back_leaves_in_the_future_admits_nobody(statement: Statement) -> None:
    book = table()
    take(book, statement, 100)
    assert book.entry(statement.key, 100 - SKEW) is not None
    assert book.entry(statement.key, 100 - SKEW - 1) is None
    assert book.entry(statement.key, 100) is not None, "the clock is right again, and the lease not over"


def test_no_lease_comes_back_with_the_time_that_the_clock_was_set_back_by() -> None:
    passed = 0.0
    book = LeaseTable("sdn", floors=FloorsInMemory(), longest_lease_s=LONGEST, skew_s=SKEW, steady=lambda: passed)
    take(book, lease(), 100)
    passed = 29.0
    assert book.entry(CERT, 129) is not None
    assert book.entry(CERT, 129 - 3600) is None
    passed = 3600.0
    assert book.entry(CERT, 100) is None, "an hour later it is what it was then by this clock"


def test_a_clock_ahead_keeps_no_withdrawal_out() -> None:
    book = table()
    take(book, lease(), 100)
    assert take(book, withdrawal(issued_at=101, until=130), 101 + 3600)
    assert book.entry(CERT, 102) is None
    assert not_taken(book, lease(sequence=2, issued_at=102, expires_at=132), 102) == "admission.withdrawn"


def test_a_withdrawal_from_ahead_of_the_clock_counts_now() -> None:
    book = table()
    take(book, lease(), 100)
    assert take(book, withdrawal(issued_at=100 + 3600, until=100 + 7200), 100)
    assert book.entry(CERT, 100) is None


def test_lapsed_leases_are_told_once() -> None:
    book = table()
    take(book, lease(), 100)
    take(book, host(expires_at=150), 100)
    assert list(book.forget(129)) == []
    assert list(book.forget(130)) == [CERT]
    assert list(book.forget(130)) == []
    assert list(book) == [HOST]


def test_difference() -> None:
    kept, new, changed = (HostEntry(sequence=i, since=1, until=9, host="h1") for i in (1, 2, 3))
    changes = difference(
        {"kept": kept, "new": new, "changed": changed},
        {"kept": kept.model_dump_json(), "changed": new.model_dump_json(), "stray": "junk"},
    )
    assert changes.remove == ["stray"]
    assert changes.put == {"new": new, "changed": changed}


times = st.integers(100, 300)
leases = st.builds(
    lambda issued, length, sequence: lease(issued, issued + length, sequence),
    times,
    st.integers(1, 90),
    st.integers(1, 6),
)
withdrawals = st.builds(
    lambda issued, left, sequence: withdrawal(CERT, issued, issued + left, sequence),
    times,
    st.integers(0, 90),
    st.integers(1, 6),
)


@threat(rows.ADMISSION_REPLAYED)
@given(steps=st.lists(st.tuples(st.one_of(leases, leases, withdrawals), st.integers(0, 20)), max_size=30))
def test_statements_in_any_order(steps: list[tuple[Lease | Withdrawal, int]]) -> None:
    """Whatever the bus plays, in whatever order, nobody is in who should not be."""
    book, at, taken, sequences = table(), 100, [], [0]
    for statement, later in steps:
        at += later
        book.forget(at)
        try:
            changed = take(book, statement, at)
        except Refusal:
            changed = False
        if changed:
            taken.append(statement)
        entry = book.entry(CERT, at)
        if entry is None:
            continue
        source = next(s for s in taken if isinstance(s, Lease) and s == book[CERT])
        assert at < entry.until <= min(source.expires_at, source.issued_at + LONGEST)
        assert source.issued_at <= at + SKEW
        for withdrawn in (s for s in taken if isinstance(s, Withdrawal)):
            # Admitted after a withdrawal only by a statement that the manager signed after it.
            assert source.issued_at > withdrawn.issued_at + SKEW - 1
        alive = [s for s in taken if isinstance(s, Lease) and min(s.expires_at, s.issued_at + LONGEST) > at]
        assert entry.sequence == max(s.sequence for s in alive)
        sequences.append(entry.sequence)
    if not any(isinstance(s, Withdrawal) for s in taken) and at < 160:
        assert all(a <= b for a, b in pairwise(sequences))
