"""Hosts whose TPM is enrolled, from hello to recheck, on real workers and agents: what anchors, and what ends it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count

import pytest

from attestgate.host_agent import tpm_client
from attestgate.host_agent.tpm_client import TpmClient
from attestgate.host_agent.tpm_service import TpmService, address
from attestgate.manager.sessions.record import HostRecord
from attestgate.schemas.base import Refusal
from attestgate.schemas.host_policy import Bank
from attestgate.schemas.tpm import TpmQuote
from tests.support.ima.lists import recorded
from tests.support.manager.deployment import Deployment
from tests.support.reasons import event_code
from tests.support.threats import rows, threat
from tests.support.tpm.hosts import enrol, recheck, start
from tests.support.tpm.soft import BOOT, SoftTpm, remade


@pytest.fixture
def site(site: Deployment) -> Deployment:
    """Its host's list begins with the boot of `SoftTpm`."""
    site.measurement_list.write_bytes(remade("clean"))
    return site


@pytest.fixture
def tpm(site: Deployment) -> SoftTpm:
    return SoftTpm(measured=site.measurement_list.read_bytes())


async def test_a_host_with_its_tpm_is_anchored_and_stays_so_as_its_list_grows(site: Deployment, tpm: SoftTpm) -> None:
    await enrol(site, tpm.enrolment)
    async with await TpmService(tpm, "sha256").start() as service:
        await start(site, service)
        await site.until("host", "h1", "trusted")
        (record,) = await site.records(HostRecord)
        assert record.wanted == ["sgx", "ima", "tpm"]
        assert record.outcome is not None and record.outcome.integrity == "anchored"
        assert record.tpm is not None and record.tpm.reset_count == tpm.resets
        assert await recheck(site, "rechecked") == []
        (record,) = await site.records(HostRecord)
        assert record.outcome is not None and record.outcome.integrity == "anchored"
        assert len(set(tpm.asked)) == len(tpm.asked) == 2, "each question has its own nonce"


@threat(rows.LIST_EDITED)
async def test_a_list_that_the_tpm_does_not_vouch_for_is_refused(site: Deployment, tpm: SoftTpm) -> None:
    await enrol(site, tpm.enrolment)
    tpm.measured = remade("drift")
    async with await TpmService(tpm, "sha256").start() as service:
        await start(site, service)
        assert event_code(await site.until("host", "h1", "refused")) == "ima.replay"


@threat(rows.TPM_OTHER)
async def test_another_tpm_or_another_boot_is_refused(site: Deployment, tpm: SoftTpm) -> None:
    await enrol(site, SoftTpm().enrolment)
    async with await TpmService(tpm, "sha256").start() as service:
        await start(site, service)
        assert event_code(await site.until("host", "h1", "refused")) == "tpm.signature"
        since = len(site.events)
        other = (*BOOT[:4], bytes(32), *BOOT[5:])
        await enrol(site, SoftTpm(boot=other, key=tpm.key).enrolment)
        await site.advance(2)  # hellos are taken once a second
        assert event_code(await site.until("host", "h1", "refused", since=since)) == "tpm.boot_state"


@threat(rows.TPM_OTHER)
async def test_an_enrolled_host_without_its_tpm_gives_no_evidence(site: Deployment, tpm: SoftTpm) -> None:
    await enrol(site, tpm.enrolment)
    await start(site, None)
    await site.until("host", "h1", "challenged")
    await site.quiet()
    assert "trusted" not in site.what("host", "h1")


async def test_a_reset_within_a_session_ends_it_and_the_next_one_begins_anew(site: Deployment, tpm: SoftTpm) -> None:
    await enrol(site, tpm.enrolment)
    async with await TpmService(tpm, "sha256").start() as service:
        await start(site, service)
        await site.until("host", "h1", "trusted")
        tpm.resets += 1
        since = len(site.events)
        assert await recheck(site, "untrusted") == ["tpm.reset"]
        await site.advance(2)  # hellos are taken once a second
        await site.until("host", "h1", "trusted", since=since)


@threat(rows.TPM_OTHER)
async def test_a_tpm_that_goes_back_is_refused_within_a_session_and_across(site: Deployment, tpm: SoftTpm) -> None:
    await enrol(site, tpm.enrolment)
    async with await TpmService(tpm, "sha256").start() as service:
        await start(site, service)
        await site.until("host", "h1", "trusted")
        tpm.resets -= 1
        since = len(site.events)
        assert await recheck(site, "untrusted") == ["tpm.clock"]
        await site.advance(2)  # hellos are taken once a second
        assert event_code(await site.until("host", "h1", "refused", since=since)) == "rollback"


async def test_a_host_is_asked_for_its_tpm_from_the_next_recheck_after_it_was_enrolled(
    site: Deployment, tpm: SoftTpm
) -> None:
    await site.enrol_host()
    site.measurement_list.write_bytes(recorded("clean"))  # whose boot_aggregate the policy knows
    async with await TpmService(tpm, "sha256").start() as service:
        await start(site, service)
        await site.until("host", "h1", "trusted")
        (record,) = await site.records(HostRecord)
        assert record.wanted == ["sgx", "ima"] and tpm.asked == []
        assert record.outcome is not None and record.outcome.integrity == "unanchored"
        await enrol(site, tpm.enrolment)
        assert await recheck(site, "untrusted") == ["host.tpm"]


class Silent:
    """A TPM that does not answer."""

    def quote(self, nonce: bytes, bank: Bank) -> TpmQuote:
        raise Refusal.because("tpm.command", "TPM", expected="an answer", found="none", action="wait")


async def test_the_service_answers_each_nonce_and_closes_on_what_is_no_nonce(tpm: SoftTpm) -> None:
    async with await TpmService(tpm, "sha256").start() as service:
        client = TpmClient(address(service))
        quotes = await asyncio.gather(*(asyncio.to_thread(client.quote, bytes([n]) * 32) for n in range(5)))
        assert all(bytes([n]) * 32 in quotes[n].message for n in range(5))
        reader, writer = await asyncio.open_connection(*address(service).split(":"))
        writer.write(b"short")
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_service_without_a_tpm_or_none_at_all_is_a_refusal() -> None:
    async with await TpmService(Silent(), "sha256").start() as service:
        client = TpmClient(address(service))
        with pytest.raises(Refusal, match=r"host\.tpm"):
            await asyncio.to_thread(client.quote, bytes(32))
    with pytest.raises(Refusal, match=r"host\.tpm"):
        await asyncio.to_thread(client.quote, bytes(32))


@threat(rows.VOLUME_TRAPPED)
async def test_a_service_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any local user can listen there while the service does not; a byte now and then is no answer."""
    monkeypatch.setattr(tpm_client, "monotonic", count(0.0, tpm_client.PATIENCE_S / 2).__next__)

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"\x80")
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as service:
        with pytest.raises(Refusal, match=r"host\.tpm: .* found TimeoutError"):
            await asyncio.to_thread(TpmClient(address(service)).quote, bytes(32))
