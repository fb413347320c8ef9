"""Collateral for quotes: from a cache while it is young, else from the service; never older than seen before.

The cache is a bucket that all workers share. Nothing in it is believed: signatures, validity and high-water marks
are checked on every set taken from it, as on one from the service. When the service last answered is each worker's
own memory; a time claimed by the bucket counts once, when a worker first sees the set.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from attestgate.bus.api import Bucket, BusError
from attestgate.manager.attestation.pcs_client import Pcs
from attestgate.manager.local.high_water import PolicyFloors
from attestgate.manager.verification.sgx.collateral import Collateral, Document, Examined, examine
from attestgate.manager.verification.sgx.quote import parse
from attestgate.manager.verification.x509 import check_chain, root_certificate
from attestgate.schemas.base import Model, Reason, Refusal, Seconds, pack, unpack
from attestgate.schemas.clocks import stale

WhenDown = Literal["cache", "refuse"]
"""What to do while the service cannot be used: go on with a cached set that is still valid, or refuse."""

PAUSE_S = 30
"""Between two calls to the service for one model, while a valid set is held. In seconds."""

_log = structlog.get_logger(__name__)


class Floors(Protocol):
    """High-water marks that outlive the process and are not on the bus. An unknown name is at 0."""

    def get(self, name: str) -> int:
        """The highest value seen."""
        ...

    def raise_to(self, name: str, value: int) -> None:
        """Keep `value` if it is higher than what is kept."""
        ...


class Cached(Model):
    """A set of collateral in the bucket, with the Unix second at which a worker got it from the service."""

    collateral: Collateral
    fetched_at: Seconds


@dataclass(frozen=True)
class _Held:
    collateral: Collateral
    examined: Examined
    heard_at: int


@dataclass(frozen=True)
class _Place:
    fmspc: str
    ca: str

    @property
    def key(self) -> str:
        return f"{self.fmspc}.{self.ca}"


class CollateralClient:
    """Collateral by a quote's FMSPC and CA. One a worker; safe to use from many tasks.

    `refresh_s`: how long a set is used before the service is asked again. `early_s`: how long before the end of its
    validity a set is renewed in any case.
    """

    def __init__(
        self,
        pcs: Pcs,
        bucket: Bucket,
        floors: Floors,
        policy: PolicyFloors,
        *,
        root_der: bytes,
        when_down: WhenDown,
        refresh_s: int = 3600,
        early_s: int = 86_400,
    ) -> None:
        self._pcs = pcs
        self._bucket = bucket
        self._floors = floors
        self._policy = policy
        self._root = root_der
        self._when_down = when_down
        self._refresh_s = refresh_s
        self._early_s = early_s
        self._held: dict[_Place, _Held] = {}
        self._failed: dict[_Place, tuple[int, Refusal]] = {}
        self._locks: defaultdict[_Place, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def for_quote(self, quote: bytes, at: int) -> Collateral:
        """Collateral that is valid at `at` and not older than any seen before.

        Raises Refusal: `quote.*` for a quote that cannot be read, `collateral.*` where there is no such collateral.
        """
        pck = parse(quote).pck
        place = _Place(pck.fmspc.hex(), pck.ca)
        if place not in self._held:
            # Anybody can write a quote: only a genuine chain makes this worker ask for, and remember, a new model.
            check_chain(pck.chain, root_certificate(self._root), "quote.pck_chain")
        async with self._locks[place]:
            held = await self._usable(place, at)
            if held is not None and not self._due(held, at):
                return held.collateral
            failed_at, failure = self._failed.get(place, (0, None))
            if held is None or failure is None or not failed_at <= at < failed_at + PAUSE_S:
                try:
                    return (await self._fetch(place, at)).collateral
                except Refusal as refusal:
                    failure = refusal
                    self._failed[place] = (at, refusal)
            return self._instead(place, held, failure)

    def heard(self) -> dict[str, int]:
        """When the service last answered for each platform model held, Unix seconds."""
        return {place.key: held.heard_at for place, held in list(self._held.items())}

    async def _usable(self, place: _Place, at: int) -> _Held | None:
        """What this worker holds, or else the bucket, if it is valid now."""
        held = self._held.get(place)
        if held is None or self._problems(place, held.examined, at):
            held = await self._from_bucket(place, at)
        return held

    def _due(self, held: _Held, at: int) -> bool:
        if stale(held.heard_at, at) or at >= held.heard_at + self._refresh_s:
            return True
        return at >= max(held.examined.closes() - self._early_s, held.heard_at + PAUSE_S)

    def _keep(self, place: _Place, held: _Held) -> _Held:
        self._held[place] = held
        for name, value in _marks(place, held.examined).items():
            self._floors.raise_to(name, value)
        return held

    async def _from_bucket(self, place: _Place, at: int) -> _Held | None:
        try:
            entry = await self._bucket.get(place.key)
            if entry is None or entry.value is None:
                return None
            cached = unpack(Cached, entry.value)
        except (BusError, Refusal) as error:
            _log.warning("collateral.cache_unreadable", key=place.key, error=str(error))
            return None
        examined = examine(cached.collateral, self._root)
        problems = self._problems(place, examined, at)
        if problems:
            _log.warning("collateral.cache_refused", key=place.key, reasons=[reason.code for reason in problems])
            return None
        return self._keep(place, _Held(cached.collateral, examined, min(cached.fetched_at, at)))

    async def _fetch(self, place: _Place, at: int) -> _Held:
        collateral = await self._pcs.fetch(place.fmspc, place.ca)
        examined = examine(collateral, self._root)
        problems = self._problems(place, examined, at)
        if problems:
            raise Refusal(*problems)
        held = self._keep(place, _Held(collateral, examined, at))
        self._failed.pop(place, None)
        try:
            await self._bucket.put(place.key, pack(Cached(collateral=collateral, fetched_at=at)))
        except BusError as error:
            _log.warning("collateral.cache_unwritable", key=place.key, error=str(error))
        return held

    def _instead(self, place: _Place, held: _Held | None, refusal: Refusal) -> Collateral:
        if held is None or self._when_down == "refuse":
            raise refusal
        _log.warning(
            "collateral.from_cache",
            key=place.key,
            reasons=[reason.code for reason in refusal.reasons],
            sha256=hashlib.sha256(pack(held.collateral)).hexdigest(),
            heard_at=held.heard_at,
            valid_until=held.examined.closes(),
        )
        return held.collateral

    def _problems(self, place: _Place, examined: Examined, at: int) -> list[Reason]:
        """Why a set is not valid: bad signatures, outside its validity, for another model, or older than seen."""
        problems = [*examined.reasons, *(reason for window in examined.windows for reason in window.reasons(at))]
        if examined.tcb_info is not None and str(examined.tcb_info.body.get("fmspc")).lower() != place.fmspc:
            found = str(examined.tcb_info.body.get("fmspc"))
            problems.append(_reason("tcb_info.fmspc", place.fmspc, found))
        for name, value in _marks(place, examined).items():
            floor = self._floors.get(name)
            if name.endswith(".number"):
                floor = max(floor, self._policy.crl_number if "_crl" in name else self._policy.tcb_evaluation)
            if value < floor:
                problems.append(_reason(f"{name}.floor", f"at least {floor}, which was seen before", str(value)))
        return problems


def _marks(place: _Place, examined: Examined) -> dict[str, int]:
    """What may only rise, by the name of its floor. Intel's CRL numbers stay at 1, so issue times count too."""
    marks: dict[str, int] = {}
    for name, piece in (
        (f"tcb_info.{place.fmspc}", examined.tcb_info),
        ("qe_identity", examined.qe_identity),
        (f"pck_crl.{place.ca}", examined.pck_crl),
        ("root_ca_crl", examined.root_ca_crl),
    ):
        if piece is not None:
            number = piece.evaluation_number if isinstance(piece, Document) else piece.number
            marks |= {f"{name}.number": number, f"{name}.issued": piece.issued}
    return marks


def _reason(code: str, expected: str, found: str) -> Reason:
    return Reason(
        code=f"collateral.{code}",
        field="collateral",
        expected=expected,
        found=found,
        action="ask the service for current collateral; what was rolled back is not used",
    )
