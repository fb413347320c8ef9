"""Everything that a whole run wrote and sent is searched for everything that is secret in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import BaseModel

from attestgate.app_agent.step5_evidence import TlsKey
from attestgate.host_agent import step6_deliver
from attestgate.manager.local.keyfiles import read_secret
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas.base import Secret
from attestgate.schemas.binding import application_key
from attestgate.schemas.enrolment import RecheckNow, Revoke
from attestgate.schemas.messages import AppGrant, HostGrant
from tests.support.manager.deployment import Deployment
from tests.support.threats import rows, threat


def secrets_in(value: Any) -> Iterator[bytes]:
    """Every secret in a model, however deep."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secrets_in(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collects every secret that a record, a grant or an agent ever held."""
    found: list[bytes] = []
    seal, generate = RecordCipher.seal, TlsKey.generate.__func__  # type: ignore[attr-defined]

    def noting_seal(self: RecordCipher, bucket: str, key: str, counter: int, record: BaseModel) -> bytes:
        found.extend(secrets_in(record))
        return seal(self, bucket, key, counter, record)

    def noting_generate(cls: type[TlsKey]) -> TlsKey:
        key: TlsKey = generate(cls)
        found.append(key.private.private_numbers().private_value.to_bytes(32, "big"))
        found.append(key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return key

    def noting_key(k: Secret, session: str, t2: bytes) -> Secret:
        key = application_key(k, session, t2)
        found.append(key.reveal())
        return key

    monkeypatch.setattr(RecordCipher, "seal", noting_seal)
    monkeypatch.setattr(step6_deliver, "application_key", noting_key)
    monkeypatch.setattr(TlsKey, "generate", classmethod(noting_generate))
    return found


@threat(rows.BUS_READS)
async def test_no_secret_is_in_anything_that_was_sent_stored_or_logged(
    site: Deployment, marked: list[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    await site.admitted()
    since = len(site.events)
    for kind, id in (("host", "h1"), ("app", "a1")):
        await site.order(RecheckNow(kind=kind, id=id))  # type: ignore[arg-type]
        await site.until(kind, id, "rechecked", since=since)
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    await site.until("app", "a1", "untrusted", since=since)
    await site.quiet()

    manager = site.world.keys / "manager"
    secrets = {*marked, read_secret(manager / "pki-passphrase").reveal(), site.world.salt}
    secrets |= {bytes.fromhex(key) for key in _storage_keys(site)}
    assert len(secrets) >= 10
    assert all(len(secret) >= 32 for secret in secrets)

    written = b"\n".join(subject.encode() + b" " + data for subject, data in site.wire.seen)
    written += b"\n".join(
        entry.value or b"" for bucket in site.wire.buckets.values() for entry in bucket.snapshot().entries.values()
    )
    out, err = capfd.readouterr()
    written += out.encode() + err.encode()
    written += b"".join(path.read_bytes() for path in site.folder.rglob("*") if path.is_file())
    assert b"evidence sent" in written, "the logs are searched too"
    for secret in secrets:
        for form in (secret, secret.hex().encode(), repr(secret)[2:-1].encode()):
            assert form not in written


def _storage_keys(site: Deployment) -> list[str]:
    document = json.loads((site.world.keys / "manager" / "storage-keys.json").read_text())
    return list(document["epochs"].values())


@threat(rows.BUS_READS)
async def test_a_session_that_is_over_holds_no_secret(site: Deployment, marked: list[bytes]) -> None:
    await site.admitted()
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    assert marked
    for record in [*await site.records(HostRecord), *await site.records(AppRecord)]:
        assert record.over
        assert list(secrets_in(record)) == []


@pytest.mark.parametrize(
    "model",
    [
        HostGrant(k=Secret(b"K" * 32), n1=bytes(32), channel=Secret(b"C" * 32)),
        AppGrant(n2=bytes(32), channel=Secret(b"C" * 32)),
    ],
)
def test_a_grant_shows_no_secret(model: BaseModel) -> None:
    for shown in (repr(model), str(model), f"{model}", repr(model.__dict__)):
        assert "KKKK" not in shown
        assert "CCCC" not in shown
