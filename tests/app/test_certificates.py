"""A certificate's life on the whole path: renewed before it lapses, revoked, made by the manager, marked as a proxy."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from attestgate.enclave.providers import memory
from attestgate.manager.local.keyfiles import read_secret
from attestgate.manager.pki.authority import key_id, load_authority
from attestgate.manager.pki.issue import read_marks
from attestgate.manager.sessions.record import AppRecord
from attestgate.schemas.admission import ALL, BUCKET, Lease, Withdrawal, crl_key
from attestgate.schemas.base import unpack
from attestgate.schemas.enrolment import (
    MANIFEST,
    MANIFESTS,
    AppEnrolment,
    Enrol,
    Placement,
    PolicyManifest,
    PutPolicy,
    Revoke,
)
from attestgate.schemas.settings import Timing
from tests.support.app.agent import running, start
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import APP_ENCLAVE, OTHER_ENCLAVE, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

SHORT = Timing(lease_s=30, recheck_s=10, evidence_window_s=10, skew_s=5, certificate_s=80)
"""Rechecked every 10 s; with less than 40 s left, a certificate is renewed."""


@pytest.fixture
async def brief(world: World, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(world, tmp_path, timing=SHORT) as deployment:
        yield deployment


async def trusted_host(site: Deployment) -> None:
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")


async def enrol(site: Deployment, **more: object) -> None:
    fields = {
        "id": "a1",
        "mrenclaves": [APP_ENCLAVE.mrenclave.hex()],
        "placements": [Placement(host="h1", volume=0)],
        "allow": [ALL],
    }
    await site.order(Enrol(subject=AppEnrolment(**{**fields, **more})))  # type: ignore[arg-type]


async def permit(site: Deployment, **allowed: bool) -> None:
    """Put the same policies in force with a manifest that allows more."""
    command = site.world.policies.command(site.world.author, version=2)
    manifest = unpack(PolicyManifest, command.manifest.payload).model_copy(update=allowed)
    signed = site.world.author.sign(MANIFEST, MANIFESTS, manifest)
    await site.order(PutPolicy(manifest=signed, documents=command.documents))


async def admitted(site: Deployment, **more: bool) -> AppRecord:
    await site.until("app", "a1", "admitted")
    await site.quiet()
    return (await site.records(AppRecord))[-1]


async def through_rechecks(site: Deployment, what: str) -> None:
    """Let time pass, recheck by recheck, until it has happened to the application."""
    since = len(site.events)
    for _ in range(10):
        await site.advance(10)
        for subject in ("h1", "a1"):
            kind = "host" if subject == "h1" else "app"
            await site.until(kind, subject, "rechecked", since=since)
        await site.quiet()
        since = len(site.events)
        if what in site.what("app", "a1"):
            return
    raise AssertionError(f"{what} has not happened: {site.what('app', 'a1')}")


async def test_a_certificate_is_renewed_before_it_lapses_for_the_same_key(brief: Deployment) -> None:
    site = brief
    await trusted_host(site)
    await enrol(site)
    await start(site)
    first = await admitted(site)
    application = running()
    assert application.credential.serial == first.serial
    before = weakref.ref(application.credential)
    await through_rechecks(site, "renewed")
    second = (await site.records(AppRecord))[-1]
    assert second.serial != first.serial
    keys = [x509.load_pem_x509_certificate(r.certificate.encode()).public_key() for r in (first, second)]
    assert keys[0] == keys[1]
    assert application.credential.serial == second.serial, "the program changes over, and was not started again"
    assert running() is application
    gc.collect()
    assert before() is None, "an application that runs for long keeps no heap of certificates"
    at = int(site.clock())
    leases = site.gateway.lease_table
    assert leases.entry(f"cert.{first.serial}", at) is not None, "requests under way are not cut off"
    assert leases.entry(f"cert.{second.serial}", at) is not None
    since = len(site.events)
    await site.advance(10)
    await site.until("app", "a1", "rechecked", since=since)
    await site.quiet()
    retired = leases[f"cert.{first.serial}"]
    assert isinstance(retired, Withdrawal) and retired.reason == "certificate.renewed"
    assert leases.entry(f"cert.{second.serial}", int(site.clock())) is not None
    assert site.gateway.passes("a1")


async def test_under_gramine_which_has_no_memfd_create_the_key_is_in_its_tmpfs(
    site: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attestation").mkdir()
    (tmp_path / "tmpfs").mkdir()
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(memory, "DEV_ATTESTATION", tmp_path / "attestation")
    monkeypatch.setattr(memory, "GRAMINE_TMPFS", tmp_path / "tmpfs")
    await trusted_host(site)
    await enrol(site)
    await start(site)
    await admitted(site)
    assert not list((tmp_path / "tmpfs").iterdir())


async def test_an_end_takes_both_certificates_and_puts_them_on_the_list(brief: Deployment) -> None:
    site = brief
    await trusted_host(site)
    await enrol(site)
    await start(site)
    first = await admitted(site)
    await through_rechecks(site, "renewed")
    second = (await site.records(AppRecord))[-1]
    await site.order(Revoke(kind="app", id="a1", reason="a test"))
    await site.until("app", "a1", "revoked")
    await site.quiet()
    assert not site.gateway.passes("a1")
    pki = site.world.keys / "manager"
    authority = load_authority(pki / "pki", read_secret(pki / "pki-passphrase"))
    entry = await site.bus.bucket(BUCKET).get(crl_key(key_id(authority.certificate)))
    assert entry is not None and entry.value is not None
    crl = x509.load_der_x509_crl(entry.value)
    assert crl.is_signature_valid(authority.key.public_key())
    for serial in (first.serial, second.serial):
        revoked = crl.get_revoked_certificate_by_serial_number(int(serial, 16))
        assert revoked is not None
        reason = revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason
        assert reason is x509.ReasonFlags.privilege_withdrawn
    assert site.gateway.leases, "something was leased at all"


async def test_two_measurements_while_an_update_rolls_out(site: Deployment) -> None:
    await trusted_host(site)
    await enrol(site, mrenclaves=[OTHER_ENCLAVE.mrenclave.hex(), APP_ENCLAVE.mrenclave.hex()])
    await site.app()
    await site.until("app", "a1", "admitted")
    since = len(site.events)
    await site.advance(2)  # an id says hello once a second
    await site.app(identity=OTHER_ENCLAVE)
    await site.until("app", "a1", "admitted", since=since)
    await enrol(site, mrenclaves=[OTHER_ENCLAVE.mrenclave.hex()])
    since = len(site.events)
    await site.advance(2)
    await site.app()
    rejected = await site.until("app", "a1", "evidence-rejected", since=since)
    assert event_code(rejected) == "sgx.mrenclave"


@threat(rows.RULES)
async def test_the_lease_carries_what_the_enrolment_allows_and_a_recheck_what_it_allows_now(site: Deployment) -> None:
    await trusted_host(site)
    await enrol(site, allow=["GET /switches/**"])
    await start(site)
    record = await admitted(site)
    key = f"cert.{record.serial}"
    lease = site.gateway.lease_table[key]
    assert isinstance(lease, Lease) and lease.allow == ["GET /switches/**"]
    await enrol(site, allow=["GET /switches"])
    since = len(site.events)
    await site.advance(10)
    await site.until("app", "a1", "rechecked", since=since)
    await site.quiet()
    lease = site.gateway.lease_table[key]
    assert isinstance(lease, Lease) and lease.allow == ["GET /switches"]


@threat(rows.KEY_FROM_OUTSIDE)
async def test_a_key_of_the_managers_only_where_policy_and_enclave_take_it(site: Deployment) -> None:
    await trusted_host(site)
    await enrol(site, certificate_key="manager")
    agent = await start(site, accept_manager_key=True)
    refused = await site.until("app", "a1", "refused")
    assert event_code(refused) == "policy.certificate_key"
    await agent.stop()
    await permit(site, allow_manager_keys=True)
    await site.advance(2)
    since = len(site.events)
    await start(site, accept_manager_key=True)
    certified = await site.until("app", "a1", "certified", since=since)
    assert "weaker" in str(certified.data["key"])
    record = await admitted(site)
    assert record.manager_key
    leaf = x509.load_pem_x509_certificate(record.certificate.encode())
    assert read_marks(leaf) == ["manager-key"]
    lease = site.gateway.lease_table[f"cert.{record.serial}"]
    assert isinstance(lease, Lease) and "manager-key" in lease.marks
    assert running().credential.serial == record.serial


@threat(rows.KEY_FROM_OUTSIDE)
async def test_an_enclave_that_was_not_built_for_it_takes_no_key_from_outside(site: Deployment) -> None:
    await trusted_host(site)
    await enrol(site, certificate_key="manager")
    await permit(site, allow_manager_keys=True)
    before = len(program_starts())
    await start(site)
    await site.until("app", "a1", "certified")
    await site.quiet()
    assert len(program_starts()) == before


def program_starts() -> list[object]:
    from tests.support.app import program

    return list(program.started)


@threat(rows.KEY_FROM_OUTSIDE)
async def test_a_proxy_only_where_the_policy_says_so_and_marked(site: Deployment) -> None:
    await trusted_host(site)
    await enrol(site)
    agent = await start(site, "tests.support.app.proxying")
    refused = await site.until("app", "a1", "refused")
    assert event_code(refused) == "policy.proxy"
    await agent.stop()
    await permit(site, allow_proxy=True)
    await site.advance(2)
    since = len(site.events)
    await start(site, "tests.support.app.proxying")
    await site.until("app", "a1", "admitted", since=since)
    await site.quiet()
    record = (await site.records(AppRecord))[-1]
    assert read_marks(x509.load_pem_x509_certificate(record.certificate.encode())) == ["proxy"]
    lease = site.gateway.lease_table[f"cert.{record.serial}"]
    assert isinstance(lease, Lease) and "proxy" in lease.marks
    await permit_nothing(site)
    await site.advance(10)
    untrusted = await site.until("app", "a1", "untrusted")
    assert event_code(untrusted) == "policy.proxy"


async def permit_nothing(site: Deployment) -> None:
    """A newer manifest that allows neither."""
    command = site.world.policies.command(site.world.author, version=3)
    await site.order(command)
