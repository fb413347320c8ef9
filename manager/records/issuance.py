"""What a manager worker does with its CA: certificates for sessions, and the revocation lists on the bus.

A list is in the bucket `admissions` under `crl.<issuer>`; gateways serve it over HTTP. Several workers add to it by
compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog
from cryptography import x509

from attestgate.bus.api import MAX_CONFLICTS, Bus, BusError, Conflict, compare_and_set
from attestgate.manager.audit.orders import Orders
from attestgate.manager.local.crl_files import CrlFiles
from attestgate.manager.pki import crl
from attestgate.manager.pki.authority import Authority, Issuer, key_id
from attestgate.manager.pki.issue import OBSERVE_ONLY, PROXY, IssuedCertificate, issue, issue_with_key
from attestgate.manager.sessions.inter_session import RevokedCertificate
from attestgate.manager.sessions.record import AppRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import BUCKET, crl_key
from attestgate.schemas.base import Refusal
from attestgate.schemas.enrolment import AppEnrolment

log = structlog.get_logger(__name__)
REFRESH_S = crl.LIFE.total_seconds() / 4
_REASONS = {
    State.REVOKED: x509.ReasonFlags.privilege_withdrawn,
    State.UNTRUSTED: x509.ReasonFlags.key_compromise,
    State.SUPERSEDED: x509.ReasonFlags.superseded,
}
"""RFC 5280, section 5.3.1; any other state: cessation of operation. An untrusted host may have leaked the key."""


class Certificates:
    """Issues certificates, and publishes what was revoked.

    `certificate_s` is the life of a certificate in seconds, `passed` the clock by which a revocation is forgotten after
    it: `now`, but a clock that is ahead for a moment makes nobody forget (manager/local/clock_steps.py).
    """

    def __init__(
        self,
        bus: Bus,
        authority: Authority,
        certificate_s: int,
        orders: Orders,
        copies: CrlFiles,
        now: Callable[[], float],
        passed: Callable[[], float] | None = None,
    ) -> None:
        self._bucket = bus.bucket(BUCKET)
        self._authority = authority
        self._orders = orders
        self._copies = copies
        self._certificate_s = certificate_s
        self._now = now
        self._passed = passed or now
        self._refresh = asyncio.Event()

    def issue(self, record: AppRecord, enrolled: AppEnrolment) -> IssuedCertificate:
        """The next certificate of a session, for the key that its enrolment asks for. Raises Refusal (`pki.*`)."""
        observed = record.outcome is not None and record.outcome.observe_only
        marks = [mark for mark, holds in ((PROXY, record.proxy), (OBSERVE_ONLY, observed)) if holds]
        at = int(self._now())
        if enrolled.certificate_key == "manager":
            return issue_with_key(
                self._authority,
                host=record.host,
                app=record.subject,
                lifetime_s=self._certificate_s,
                at=at,
                marks=marks,
            )
        return issue(
            self._authority,
            record.certificate_request,
            host=record.host,
            app=record.subject,
            lifetime_s=self._certificate_s,
            at=at,
            marks=marks,
        )

    async def revoked(self, entry: RevokedCertificate) -> None:
        """Add a certificate to its issuer's revocation list. Raises BusError."""
        issuer = self._authority.issuer(entry.issuer)
        if issuer is None:
            # Harmless: a CA is removed only once its last certificate has expired (manager/pki/rotation.py).
            log.warning("revocation ignored: the CA is no longer loaded", issuer=entry.issuer)
            return
        reason = _REASONS.get(State(entry.state), x509.ReasonFlags.cessation_of_operation)
        await self._extend(issuer, [crl.Revocation(int(entry.serial, 16), entry.at, reason)])

    def clock_was_set(self) -> None:
        """Lists may lie in the future: publish them anew."""
        self._refresh.set()

    async def keep_lists(self) -> None:
        """Enter the CA in the decision log, and publish every list well before it expires, until cancelled."""
        while True:
            self._refresh.clear()
            try:
                await self._orders.issuing_ca(self._authority)
                for issuer in (self._authority, *self._authority.retired):
                    await self._extend(issuer, [])
            except BusError as error:
                log.warning("revocation lists not published, retrying later", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._refresh.wait()

    async def _extend(self, issuer: Issuer, revoked: list[crl.Revocation]) -> None:
        name = key_id(issuer.certificate)
        key = crl_key(name)
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(key)
            # nginx admits by leases, not by these lists. Those who check certificates by them alone must not see an
            # entry leave or a number fall because the bus showed an old list, or none that can be read.
            before = [*_readable(issuer, entry.value if entry else None), *_readable(issuer, self._copies.read(name))]
            at, passed = int(self._now()), int(self._passed())
            der = crl.extend(issuer, before, revoked, at=at, longest_s=self._certificate_s, passed=passed)
            if await compare_and_set(self._bucket, key, entry, der):
                self._copies.write(name, der)
                return
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")


def _readable(issuer: Issuer, der: bytes | None) -> list[x509.CertificateRevocationList]:
    """The list, if this CA signed it."""
    if der is None:
        return []
    try:
        return [crl.read(issuer, der)]
    except Refusal as refusal:
        log.error("revocation list ignored", reason=refusal.reasons[0].sentence())
        return []
