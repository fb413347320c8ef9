"""What a whole deployment leaves in the log: every grant and its end, no routine, no secret, and hosts as witnesses."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestgate.bus import subjects
from attestgate.bus.layout import LOG, TREE
from attestgate.manager.audit.head import HEAD
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas import audit
from attestgate.schemas.admission import GatewayReport, sign_report
from attestgate.schemas.break_glass import BREAK_GLASS, BreakGlass, at_gateways
from attestgate.schemas.enrolment import Enrol, HostEnrolment, Revoke
from attestgate.schemas.events import reasons_of
from attestgate.schemas.signing import Signer
from tests.support.audit.decisions import decided, said
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import GATEWAY, HOST_ENCLAVE, LISTS, OPERATOR, TRUST_DOMAIN
from tests.support.threats import rows, threat

GLASS = BreakGlass(
    operator=OPERATOR,
    serial="4d01",
    certificate="ab" * 32,
    identity="spiffe://test.example/host/h1/app/a1",
    allow=[],
    issued_at=1_800_000_000,
    expires_at=1_800_000_060,
    reason="the managers are down",
)


async def log_of(site: Deployment) -> list[audit.Decision]:
    return await decided(site.bus, site.world, int(site.clock.at))


def facts(found: list[audit.Decision], kind: type[Any]) -> list[Any]:
    return [decision.fact for decision in found if isinstance(decision.fact, kind)]


async def test_an_admission_its_routine_and_its_end(site: Deployment) -> None:
    await site.admitted()
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    before = await log_of(site)
    for _ in range(2):
        await site.next_rechecks()
    assert await log_of(site) == before
    await site.order(Revoke(kind="app", id="a1", reason="a test"))
    await site.until("app", "a1", "revoked")
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.advance(10)
    await site.until("host", "h1", "untrusted")
    await site.quiet()
    found = await log_of(site)
    assert said(found, host.session) == ["accepted", "ended"]
    assert said(found, app.session) == ["accepted", "issued", "admitted", "ended"]
    assert [d.number for d in found if d.session == app.session] == [1, 2, 3, 4]
    (issued,), (admitted,) = facts(found, audit.IssuedFact), facts(found, audit.Admitted)
    certificate = x509.load_pem_x509_certificate(app.certificate.encode())
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (issued.serial, issued.certificate, issued.key) == (
        app.serial,
        app.certificate_hash,
        hashlib.sha256(public).hexdigest(),
    )
    assert admitted.serial == app.serial
    on_host, on_app = facts(found, audit.AcceptedFact)
    assert (on_host.measurements, on_app.host_session) == (host.list_digest.hex(), host.session)
    revoked, drifted = facts(found, audit.EndedFact)
    assert (revoked.state, revoked.certificates) == ("REVOKED", [app.serial])
    assert (drifted.state, drifted.reasons[0].code) == ("UNTRUSTED", "ima.unknown")


async def test_orders_and_keys(site: Deployment) -> None:
    await site.enrol_host()
    await site.order(Revoke(kind="host", id="h1", reason="lost"))
    found = await log_of(site)
    ordered = facts(found, audit.Ordered)
    assert [(one.command, one.about) for one in ordered] == [
        ("put-policy", None),
        ("enrol", "gateway/gateway-1"),
        ("enrol", "host/h1"),
        ("revoke", "host/h1"),
    ]
    assert ordered[0].manifest is not None and ordered[3].reason == "lost"
    assert {d.by for d in found if d.kind == "op"} == {"operator"}
    (key,) = facts(found, audit.KeyInForce)
    assert key.key == "issuing-ca"


async def test_who_was_refused_is_there_and_who_only_knocked_is_not(site: Deployment) -> None:
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.enrol_host()
    agent = await site.host()
    await site.until("host", "h1", "refused")
    await agent.stop()
    await site.order(
        Enrol(
            subject=HostEnrolment(
                id="h2", mrenclaves=[HOST_ENCLAVE.mrenclave.hex()], platform=site.world.ppid("machine-b")
            )
        )
    )
    agent = await site.host("h2", "machine-a")
    await site.until("host", "h2", "evidence-rejected")
    await agent.stop()
    await site.advance(20)
    await site.until("host", "h2", "expired")
    (refused,) = facts(await log_of(site), audit.EndedFact)
    assert (refused.state, refused.reasons[0].code) == ("REFUSED", "ima.unknown")


async def test_no_entry_holds_a_secret(site: Deployment) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    assert host.k is not None
    stored = [message.data for message in site.wire.stored(LOG.name)]
    assert len(stored) > 5
    assert not any(host.k.reveal() in data for data in stored)


@threat(rows.LOG_EDITED)
async def test_every_host_is_shown_the_head(site: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    async with asyncio.timeout(20), aclosing(site.bus.bucket(TREE.name).watch(HEAD)) as heads:
        async for entry in heads:
            if entry is not None:
                break
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    await site.advance(10)
    await site.until("host", "h1", "rechecked")
    shown = [line for line in capsys.readouterr().out.splitlines() if "] decision log" in line]
    assert shown and "test.example/attestgate/decisions" in shown[0]
    assert said(await log_of(site), (await site.records(HostRecord))[0].session) == ["accepted"]


@threat(rows.KEY_GATEWAY_ADMITS)
async def test_an_admission_by_hand_that_a_gateway_reports(site: Deployment) -> None:
    """As often as it is told, once; and not where its operator has not signed it."""
    operator, stranger = site.world.operator, Signer(TRUST_DOMAIN, Ed25519PrivateKey.generate())
    signed = operator.sign(BREAK_GLASS, at_gateways("gateways"), GLASS)
    forged = signed.model_copy(update={"payload": signed.payload[:-1] + b"!"})
    no_operators = stranger.sign(BREAK_GLASS, at_gateways("gateways"), GLASS)
    for_others = operator.sign(BREAK_GLASS, at_gateways("others"), GLASS)
    subject = subjects.inbound("gateway", GATEWAY, "report")
    for said_by in ([signed], [signed], [forged, no_operators, for_others]):
        report = GatewayReport(gateway=GATEWAY, epoch="ab" * 16, applied=[], at=1_800_000_000, floors=0, glass=said_by)
        await site.bus.publish(subject, sign_report(site.world.gateway, report))
    dropped = await site.until("gateway", GATEWAY, "dropped")
    codes = [reason.code for reason in reasons_of(dropped)]
    assert codes == ["signature.invalid", "signature.signer", "signature.invalid"]
    await site.quiet()
    (broken,) = facts(await log_of(site), audit.BreakGlassFact)
    public = operator.public.hex()
    assert (broken.operator, broken.signer, broken.serial) == (OPERATOR, public, "4d01")


@threat(rows.KEY_OPERATOR_GLASS)
async def test_an_admission_by_hand_is_entered_in_the_name_of_its_key(site: Deployment) -> None:
    """And what is wrong with one keeps none beside it out of the log: whoever has a key would hide his own there."""
    operator, place = site.world.operator, at_gateways("gateways")
    in_anothers_name, forged, own = (
        operator.sign(BREAK_GLASS, place, GLASS.model_copy(update={"operator": name, "serial": serial}))
        for name, serial in (("bob", "4d02"), (OPERATOR, "4d03"), (OPERATOR, "4d04"))
    )
    forged = forged.model_copy(update={"signature": bytes(64)})
    report = GatewayReport(
        gateway=GATEWAY, epoch="ab" * 16, applied=[], at=1_800_000_000, floors=0, glass=[in_anothers_name, forged, own]
    )
    subject = subjects.inbound("gateway", GATEWAY, "report")
    await site.bus.publish(subject, sign_report(site.world.gateway, report))
    dropped = await site.until("gateway", GATEWAY, "dropped")
    reasons = {reason.code: reason for reason in reasons_of(dropped)}
    assert reasons.keys() == {"break-glass.operator", "signature.invalid"}
    wrong = reasons["break-glass.operator"]
    assert (wrong.expected, wrong.found) == (OPERATOR, "bob")
    await site.quiet()
    log = await log_of(site)
    entered = [(fact.operator, fact.serial) for fact in facts(log, audit.BreakGlassFact)]
    assert entered == [(OPERATOR, "4d02"), (OPERATOR, "4d04")]
    assert {entry.by for entry in log if entry.fact.did == "broken-glass"} == {OPERATOR}
