"""The revocation lists on the bus: numbers rise and entries stay, whatever the bus shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.api import Conflict
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.audit.intake import Intake
from attestgate.manager.audit.orders import Orders
from attestgate.manager.local.clock_steps import ClockSteps
from attestgate.manager.local.crl_files import CrlFiles
from attestgate.manager.pki.authority import Authority, create_ca, key_id, load_authority
from attestgate.manager.policy.signers import Signers
from attestgate.manager.records.issuance import Certificates
from attestgate.manager.sessions.inter_session import RevokedCertificate
from attestgate.schemas.admission import BUCKET, crl_key
from attestgate.schemas.base import Secret
from attestgate.schemas.signing import Signer
from tests.support.threats import rows, threat

AT = 1_790_000_000
PASSPHRASE = Secret(b"of no value")


class Lists:
    """A worker's certificates on a bus in memory, and the list that stands there."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.server, self.authority, self.folder, self.now = MemoryServer(), authority, folder, AT
        self.bucket = self.server.connect().bucket(BUCKET)
        self.key = crl_key(key_id(authority.certificate))

    def worker(self, name: str = "manager-1", steady: Callable[[], float] | None = None) -> Certificates:
        """A worker; by a monotonic clock, one that notices steps of its wall clock."""
        bus = self.server.connect()
        identity = Signer("test.example", Ed25519PrivateKey.generate())
        signers = Signers(identity.deployment, [], {identity.public})
        orders = Orders(Intake(bus, signers.trusted, lambda: self.now), identity, signers, "gateways")
        passed = ClockSteps(lambda: self.now, steady, 3600).passed if steady else None
        return Certificates(bus, self.authority, 3600, orders, CrlFiles(self.folder / name), lambda: self.now, passed)

    async def revoke(self, worker: Certificates, serial: str) -> None:
        issuer = key_id(self.authority.certificate)
        await worker.revoked(RevokedCertificate(issuer=issuer, serial=serial, at=self.now, state="REVOKED"))

    async def published(self) -> bytes:
        entry = await self.bucket.get(self.key)
        assert entry is not None and entry.value is not None
        return entry.value

    async def shown(self) -> tuple[int, list[int]]:
        """The number of the list that stands there, and the serials on it."""
        found = x509.load_der_x509_crl(await self.published())
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return number, sorted(entry.serial_number for entry in found)


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    create_ca(tmp_path / "ca", "sdn.example.org", PASSPHRASE, AT)
    return Lists(tmp_path, load_authority(tmp_path / "ca", PASSPHRASE))


def cut(der: bytes) -> bytes:
    return der[:-1]


def nothing(_: bytes) -> bytes:
    return b""


@threat(rows.REVOCATION_LIST_OLD)
@pytest.mark.parametrize("damage", [cut, nothing], ids=["cut", "empty"])
async def test_an_unreadable_list_loses_no_revocation_and_its_number_rises(
    lists: Lists, damage: Callable[[bytes], bytes]
) -> None:
    worker = lists.worker()
    await lists.revoke(worker, "01")
    before, _ = await lists.shown()
    await lists.bucket.put(lists.key, damage(await lists.published()))
    await lists.revoke(worker, "02")
    number, serials = await lists.shown()
    assert serials == [1, 2] and number > before


async def test_nor_after_the_worker_was_started_again(lists: Lists) -> None:
    await lists.revoke(lists.worker(), "01")
    before, _ = await lists.shown()
    await lists.bucket.put(lists.key, b"junk")
    await lists.revoke(lists.worker(), "02")
    number, serials = await lists.shown()
    assert serials == [1, 2] and number > before


@threat(rows.REVOCATION_LIST_OLD)
async def test_a_bus_that_shows_an_older_list_takes_nothing_back(lists: Lists) -> None:
    worker = lists.worker()
    await lists.revoke(worker, "01")
    older = await lists.published()
    await lists.revoke(worker, "02")
    before, _ = await lists.shown()
    await lists.bucket.put(lists.key, older)
    await lists.revoke(worker, "03")
    number, serials = await lists.shown()
    assert serials == [1, 2, 3] and number > before


async def test_a_worker_that_knows_nothing_goes_on_above_what_was(lists: Lists) -> None:
    """Its own copy is gone, or it never had one: an earlier number is below the time at which the next list is made."""
    first = lists.worker()
    for serial in ("01", "02", "03"):
        await lists.revoke(first, serial)
        lists.now += 1
    before, _ = await lists.shown()
    await lists.bucket.put(lists.key, b"junk")
    await lists.revoke(lists.worker("manager-2"), "04")
    assert (await lists.shown())[0] > before
    await lists.revoke(first, "05")
    assert (await lists.shown())[1] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("ahead_s", [7200, 3650 * 86_400])
async def test_a_clock_that_is_ahead_for_a_moment_loses_no_revocation(lists: Lists, ahead_s: int) -> None:
    """Also where the CA has expired by it."""
    worker = lists.worker(steady=lambda: 0.0)
    await lists.revoke(worker, "01")
    lists.now += ahead_s
    for serial in ("02", "03"):
        await lists.revoke(worker, serial)
    assert (await lists.shown())[1] == [1, 2, 3]
    lists.now -= ahead_s
    await lists.revoke(worker, "04")
    assert (await lists.shown())[1] == [1, 2, 3, 4]


async def test_lists_from_ahead_of_the_clock_are_replaced_when_it_is_right(lists: Lists) -> None:
    worker = lists.worker(steady=lambda: 0.0)
    lists.now += 7200
    keeping = asyncio.create_task(worker.keep_lists())

    async def issued() -> datetime:
        while True:
            with suppress(AssertionError):
                return x509.load_der_x509_crl(await lists.published()).last_update_utc
            await asyncio.sleep(0.01)

    async with asyncio.timeout(15):
        ahead = await issued()
        lists.now -= 7200
        worker.clock_was_set()
        while await issued() >= ahead:
            await asyncio.sleep(0.01)
    keeping.cancel()


async def test_lists_made_within_one_second_have_numbers_of_their_own(lists: Lists) -> None:
    worker, numbers = lists.worker(), []
    for serial in ("01", "02", "03"):
        await lists.revoke(worker, serial)
        numbers.append((await lists.shown())[0])
    assert numbers == sorted(set(numbers))


@threat(rows.REVOCATION_LIST_OLD)
async def test_a_copy_that_is_not_this_cas_is_not_believed(lists: Lists, tmp_path: Path) -> None:
    create_ca(tmp_path / "other", "sdn.example.org", PASSPHRASE, AT)
    other = Lists(tmp_path / "elsewhere", load_authority(tmp_path / "other", PASSPHRASE))
    await other.revoke(other.worker(), "0bad")
    copies = CrlFiles(tmp_path / "manager-1")
    copies.write(key_id(lists.authority.certificate), await other.published())
    await lists.revoke(lists.worker(), "01")
    assert (await lists.shown())[1] == [1]


@threat(rows.COMPARE_AND_SET_LOST)
async def test_a_bus_that_has_every_compare_and_set_lost_gains_no_loop(
    lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> int:
        raise Conflict("lost")

    monkeypatch.setattr(MemoryBucket, "create", lost)
    with pytest.raises(Conflict):
        await lists.revoke(lists.worker(), "0a")


@threat(rows.DISK_FULL)
async def test_a_full_disk_holds_up_no_revocation(lists: Lists, tmp_path: Path) -> None:
    (tmp_path / "manager-1").write_text("a file where the folder would be")
    worker = lists.worker()
    await lists.revoke(worker, "01")
    await lists.bucket.put(lists.key, b"junk")
    await lists.revoke(worker, "02")
    assert (await lists.shown())[1] == [1, 2]
