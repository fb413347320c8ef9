"""Every question is new, and an answer answers its own: nonces never repeat, and no earlier quote serves again."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from attestgate.bus import subjects
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import pack, unpack
from attestgate.schemas.enrolment import RecheckNow
from attestgate.schemas.messages import HostRecheckEvidence
from tests.support.manager.agents_end import agents_end
from tests.support.manager.deployment import Deployment
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

SUBJECT = subjects.inbound("host", "h1", "recheck_evidence")


@threat(rows.EVIDENCE_LATE)
async def test_every_challenge_and_every_question_has_a_nonce_of_its_own(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonces: dict[tuple[str, bytes], bytes] = {}
    seal = RecordCipher.seal

    def noting_seal(self: RecordCipher, bucket: str, key: str, counter: int, record: BaseModel) -> bytes:
        if isinstance(record, HostRecord | AppRecord):
            if record.handshake is not None:
                nonces["challenge", record.handshake.hello] = record.handshake.nonce
            if record.handshake is not None and record.handshake.challenge_nonce is not None:
                nonces["n1 or n2", record.handshake.hello] = record.handshake.challenge_nonce
            if record.question is not None:
                nonces["recheck", record.question.chain] = record.question.nonce
        return seal(self, bucket, key, counter, record)

    monkeypatch.setattr(RecordCipher, "seal", noting_seal)
    host, app = await site.admitted()
    for _ in range(2):
        await site.recheck_both()
    for agent in (app, host):
        await agent.stop()
    await site.advance(2)
    since = len(site.events)
    await site.host()
    await site.until("host", "h1", "trusted", since=since)
    kinds = [kind for kind, _ in nonces]
    assert (kinds.count("challenge"), kinds.count("n1 or n2"), kinds.count("recheck")) == (3, 3, 4)
    assert {len(nonce) for nonce in nonces.values()} == {32}
    assert len(set(nonces.values())) == len(nonces)


async def asked_again(site: Deployment) -> tuple[HostRecord, bytes, HostRecheckEvidence]:
    """h1 once it was asked again, its answer kept back, and the answer opened."""
    held = site.wire.hold(SUBJECT)
    await site.order(RecheckNow(kind="host", id="h1"))
    _, data = await held
    (host,) = await site.records(HostRecord)
    assert host.channel is not None
    _, plaintext = host.channel.open("recheck_evidence", data)
    return host, data, unpack(HostRecheckEvidence, plaintext)


def said(host: HostRecord, evidence: HostRecheckEvidence) -> bytes:
    """What h1 would send as its next message: whoever holds its channel, its own kernel for one, can make it."""
    return agents_end(host).seal("recheck_evidence", pack(evidence))[1]


@threat(rows.EVIDENCE_LATE)
@pytest.mark.parametrize("renamed", [True, False], ids=["under the new nonce", "under its own nonce"])
async def test_a_quote_that_answered_an_earlier_question_answers_no_later_one(site: Deployment, renamed: bool) -> None:
    await site.trusted()
    _, data, first = await asked_again(site)
    site.wire.inject(SUBJECT, data)
    await site.until("host", "h1", "rechecked")
    await site.quiet()
    (trusted,) = await site.records(HostRecord)
    await site.advance(2)
    host, _, honest = await asked_again(site)
    assert honest.nonce != first.nonce
    again = first.model_copy(update={"nonce": honest.nonce}) if renamed else first
    site.wire.inject(SUBJECT, said(host, again))
    if renamed:
        assert event_code(await site.until("host", "h1", "untrusted")) == "sgx.report_data"
    await site.quiet()
    after = await site.record(HostRecord, host.session)
    assert after.state is (State.UNTRUSTED if renamed else State.RECHECKING)
    assert renamed or after.lease_end == trusted.lease_end, "a late answer renews nothing"
