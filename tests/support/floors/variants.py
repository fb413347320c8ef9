"""Rules that look like the real ones and are unsound: each was tempting, and for each something goes wrong.

They are kept so that the search is known to see what each of the real rules is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from attestgate.manager.gateway.floors import (
    AnyLease,
    Floors,
    PlaceFloor,
    Revocation,
    Row,
    Source,
)
from attestgate.schemas.admission import Statement, Tenure, Withdrawal


def counted(_: int, known: int) -> int:
    """A rank that the bus counts: set back, it gives a newer session the rank of an older one."""
    return known + 1


def timed(now_us: int, _: int) -> int:
    """A rank that is the clock alone, not raised above what is known."""
    return now_us


class RankAlone(Floors):
    """Of two sessions with one rank neither counts for more."""

    def _check_place(self, lease: AnyLease) -> None:
        floor = self._places.get(lease.tenure.place)
        if floor is None or lease.rank != floor.rank or (floor.ended and lease.tenure.session == floor.session):
            super()._check_place(lease)

    def _raised_place(self, tenure: Tenure, source: Source, *, ended: bool) -> PlaceFloor | None:
        floor = self._places.get(tenure.place)
        if floor is None or tenure.rank != floor.rank or tenure.session == floor.session:
            return super()._raised_place(tenure, source, ended=ended)
        return PlaceFloor(place=tenure.place, rank=tenure.rank, session=tenure.session, ended=ended, source=source)


class OfSubjects(Floors):
    """One order for all places of an application."""

    def _check_place(self, lease: AnyLease) -> None:
        super()._check_place(_at_one_place(lease))

    def _raised_place(self, tenure: Tenure, source: Source, *, ended: bool) -> PlaceFloor | None:
        return super()._raised_place(_one_place(tenure), source, ended=ended)


class ForgetsRevokes(Floors):
    """The Revoke of a key that is not in the settings is dropped: given back with the key, it is gone."""

    def __init__(self, rows: Iterable[Row] = (), **settings: Any) -> None:
        operators = settings["operators"]
        super().__init__(
            [row for row in rows if not isinstance(row, Revocation) or row.signer in operators], **settings
        )


class KeepsEveryRevoke(Floors):
    """A Revoke counts for good, also by a key that was stolen and taken out."""

    def _counting(self, subject: str) -> Iterator[Revocation]:
        yield from self._revoked.get(subject, {}).values()


class TombstonesOnly(Floors):
    """An end is remembered by the lease table alone, for as long as leases run."""

    def take(self, statement: Statement, value: bytes, at: int, steady: float) -> list[Row]:
        return [] if isinstance(statement, Withdrawal) else super().take(statement, value, at, steady)


class OlderPoliciesRunOut(Floors):
    """A lease of an older policy that was taken in time runs for as long as it says."""

    def policy_until(self, version: int, steady: float) -> int | None:
        return None


def _one_place(tenure: Tenure) -> Tenure:
    kind, id, *_ = tenure.place.split(".")
    return tenure.model_copy(update={"place": f"{kind}.{id}.any"})


def _at_one_place(lease: AnyLease) -> AnyLease:
    return lease.model_copy(update={"host": "any"})
