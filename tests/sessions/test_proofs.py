"""Proofs that are wrong, reflected, replayed or somebody else's; and a key file in the wrong hands."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from attestgate.app_agent.step6_colocation import PURPOSE, read_key
from attestgate.bus import subjects
from attestgate.bus.agent.link import AgentSession, Link
from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.channel import Frame, seal_frame
from attestgate.enclave.sealing import unseal
from attestgate.host_agent.step6_deliver import deliver
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import Refusal, Secret, pack, unpack
from attestgate.schemas.binding import PROOF_STEP, application_key, colocation_proof, host_proof
from attestgate.schemas.messages import DeliverKey, Proof, VolumeKey
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import APP_ENCLAVE, HOST_ENCLAVE, OTHER_ENCLAVE, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat


def message(record: HostRecord | AppRecord, proof: bytes, **changes: Any) -> bytes:
    """A proof as its agent would send it; only who has the channel secret can."""
    handshake = record.handshake
    assert handshake is not None
    assert handshake.channel_secret is not None
    fields: dict[str, Any] = {
        "base": handshake.transcript,
        "direction": "up",
        "counter": 0,
        "chain": handshake.transcript,
    }
    secret = changes.pop("secret", handshake.channel_secret)
    step = changes.pop("step", PROOF_STEP[record.role])
    return seal_frame(record.session, secret, step, pack(Proof(proof=proof)), **fields | changes)


async def granted_host(site: Deployment) -> HostRecord:
    """A host that has K and has not proven it yet."""
    await site.enrol_host()
    held = site.wire.hold(subjects.inbound("host", "h1", "key_proof"))
    await site.host()
    await held
    (record,) = await site.records(HostRecord)
    return record


async def granted_app(site: Deployment) -> tuple[HostRecord, AppRecord, bytes]:
    """An application that has n2 and has not proven co-location yet; and its honest proof."""
    await site.trusted()
    held = site.wire.hold(subjects.inbound("app", "h1.a1", "colocation_proof"))
    await site.app()
    _, honest = await held
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    return host, app, honest


def _n(record: HostRecord | AppRecord) -> tuple[bytes, bytes]:
    assert record.handshake is not None
    assert record.handshake.challenge_nonce is not None
    return record.handshake.challenge_nonce, record.handshake.transcript


def _t2(record: AppRecord) -> bytes:
    assert record.handshake is not None
    return record.handshake.t2


@threat(rows.PROOF_REPLAYED)
@pytest.mark.parametrize("wrong", ["reflected", "other nonce", "other transcript", "other key", "zero"])
async def test_a_wrong_host_proof_ends_the_session(site: Deployment, wrong: str) -> None:
    record = await granted_host(site)
    n1, t3 = _n(record)
    assert record.k is not None
    proof = {
        "reflected": colocation_proof(record.k, n1, t3),
        "other nonce": host_proof(record.k, bytes(32), t3),
        "other transcript": host_proof(record.k, n1, bytes(64)),
        "other key": host_proof(Secret(bytes(32)), n1, t3),
        "zero": bytes(64),
    }[wrong]
    site.wire.inject(subjects.inbound("host", "h1", "key_proof"), message(record, proof))
    assert event_code(await site.until("host", "h1", "refused")) == "proof.hmac"


@threat(rows.PROOF_REPLAYED)
@pytest.mark.parametrize(
    "wrong", ["reflected", "K itself", "other session's key", "other transcript's key", "other nonce"]
)
async def test_a_wrong_co_location_proof_ends_the_session(site: Deployment, wrong: str) -> None:
    host, record, _ = await granted_app(site)
    n2, t3 = _n(record)
    t2 = _t2(record)
    assert host.k is not None
    k_app = application_key(host.k, record.session, t2)
    proof = {
        "reflected": host_proof(k_app, n2, t3),
        "K itself": colocation_proof(host.k, n2, t3),
        "other session's key": colocation_proof(application_key(host.k, "ab" * 16, t2), n2, t3),
        "other transcript's key": colocation_proof(application_key(host.k, record.session, bytes(64)), n2, t3),
        "other nonce": colocation_proof(k_app, bytes(32), t3),
    }[wrong]
    site.wire.inject(subjects.inbound("app", "h1.a1", "colocation_proof"), message(record, proof))
    assert event_code(await site.until("app", "a1", "refused")) == "proof.hmac"
    await site.quiet()
    assert not site.gateway.passes("a1")


async def test_the_control_the_right_proof_made_here_is_taken(site: Deployment) -> None:
    host, record, _ = await granted_app(site)
    assert host.k is not None
    proof = colocation_proof(application_key(host.k, record.session, _t2(record)), *_n(record))
    site.wire.inject(subjects.inbound("app", "h1.a1", "colocation_proof"), message(record, proof))
    await site.until("app", "a1", "proven")


@threat(rows.PROOF_REPLAYED)
@pytest.mark.parametrize(
    "changes",
    [
        {"counter": 1},
        {"direction": "down"},
        {"chain": bytes(64)},
        {"base": bytes(64)},
        {"ack": 1},
        {"step": "key_proof"},
        {"secret": Secret(bytes(32))},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_proof_in_another_frame_does_not_open_and_the_honest_one_is_taken(
    site: Deployment, changes: dict[str, Any]
) -> None:
    host, record, honest = await granted_app(site)
    assert host.k is not None
    proof = colocation_proof(application_key(host.k, record.session, _t2(record)), *_n(record))
    if changes == {"ack": 1}:
        frame = message(record, proof)
        changed = pack(unpack_frame(frame, ack=1))
    else:
        changed = message(record, proof, **changes)
    site.wire.inject(subjects.inbound("app", "h1.a1", "colocation_proof"), changed)
    await site.dropped(1)
    assert site.dropped_codes() == ["proof.counter" if "counter" in changes else "channel.open"]
    site.wire.inject(subjects.inbound("app", "h1.a1", "colocation_proof"), honest)
    await site.until("app", "a1", "admitted")


def unpack_frame(data: bytes, **changes: Any) -> Frame:
    """A frame with changed fields."""
    return unpack(Frame, data).model_copy(update=changes)


@threat(rows.PROOF_REPLAYED)
async def test_a_proof_is_accepted_once(site: Deployment) -> None:
    await site.admitted()
    for role, name in (("host", "h1"), ("app", "h1.a1")):
        step = PROOF_STEP[role]  # type: ignore[index]
        (proof,) = site.wire.said(subjects.inbound(role, name, step))
        site.wire.inject(subjects.inbound(role, name, step), proof)
    await site.dropped(2)
    assert set(site.dropped_codes()) == {"session.move"}, (
        "in messages of their own: somebody replays them, and it is told"
    )
    assert site.what("app", "a1").count("proven") == 1


@threat(rows.PROOF_REPLAYED)
async def test_a_host_proof_of_an_older_session_is_none_in_a_newer(site: Deployment) -> None:
    old, (subject, honest), since = await site.second_session("key_proof")
    new = unpack_frame(honest)
    site.wire.inject(subject, pack(unpack_frame(old, session=new.session)))
    await site.dropped(1)
    assert site.dropped_codes() == ["channel.open"]
    site.wire.inject(subject, honest)
    await site.until("host", "h1", "trusted", since=since)


class Volume:
    """One application session's key in its volume, and everything that its rightful owner has."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.k = Secret(b"\x07" * 32)
        self.owner = self.session("ab" * 16)
        order = DeliverKey(
            app="a1",
            app_session=self.owner.session,
            enclave_key=self.owner.public_key,
            suite="x25519",
            t2=self.owner.t2,
            volume=0,
        )
        delivered = deliver(world.enclave("machine-a", HOST_ENCLAVE), self.k, [folder], order)
        assert delivered.problem is None
        (self.file,) = folder.iterdir()

    def session(self, name: str) -> AgentSession:
        """An application's session as it is in the memory of one enclave instance."""
        session = AgentSession(Link(None, "app", "a1"), set(), [], 1.0)  # type: ignore[arg-type]
        session.session, session.suite, session.t2 = name, "x25519", b"\x02" * 64
        session._private, session.public_key = envelope.generate("x25519")
        return session


@pytest.fixture
def volume(world: World, tmp_path: Path) -> Volume:
    (tmp_path / "volume").mkdir()
    return Volume(world, tmp_path / "volume")


@threat(rows.VOLUME_COPIED)
def test_the_owner_reads_its_key_once(volume: Volume) -> None:
    enclave = volume.world.enclave("machine-a", APP_ENCLAVE)
    assert read_key(volume.owner, enclave, volume.file) == application_key(
        volume.k, volume.owner.session, volume.owner.t2
    )
    with pytest.raises(Refusal, match=r"volume\.read"):
        read_key(volume.owner, enclave, volume.file)


@threat(rows.VOLUME_COPIED, rows.TWO_MACHINES, rows.KERNEL_LIES)
def test_a_copy_on_another_machine_does_not_unseal(volume: Volume) -> None:
    with pytest.raises(Refusal, match=r"seal\.open"):
        read_key(volume.owner, volume.world.enclave("machine-b", APP_ENCLAVE), volume.file)


@threat(rows.SIBLING)
def test_an_enclave_of_another_signer_does_not_unseal(volume: Volume) -> None:
    stranger = APP_ENCLAVE.model_copy(update={"mrsigner": b"\x99" * 32})
    with pytest.raises(Refusal, match=r"seal\.open"):
        read_key(volume.owner, volume.world.enclave("machine-a", stranger), volume.file)


@threat(rows.SIBLING)
def test_a_sibling_of_the_same_signer_unseals_but_cannot_open(volume: Volume) -> None:
    sibling = volume.world.enclave("machine-a", OTHER_ENCLAVE)
    inner = unpack(VolumeKey, unseal(sibling, "mrsigner", PURPOSE, volume.file.read_bytes()))
    assert volume.k.reveal() not in inner.ciphertext
    with pytest.raises(Refusal, match=r"envelope\.open"):
        read_key(volume.session(volume.owner.session), sibling, volume.file)


@threat(rows.SIBLING)
def test_a_second_instance_of_the_application_cannot_open(volume: Volume) -> None:
    second = volume.session("cd" * 16)
    second.t2 = volume.owner.t2
    with pytest.raises(Refusal, match=r"envelope\.open"):
        read_key(second, volume.world.enclave("machine-a", APP_ENCLAVE), volume.file)


@threat(rows.VOLUME_COPIED)
def test_a_file_kept_and_put_back_later_is_of_no_use(volume: Volume, tmp_path: Path) -> None:
    """A new session of the same application, under the name of its own file."""
    enclave = volume.world.enclave("machine-a", APP_ENCLAVE)
    kept = shutil.copy(volume.file, tmp_path / "kept")
    read_key(volume.owner, enclave, volume.file)
    later = volume.session("ef" * 16)
    shutil.copy(kept, volume.folder / f"{later.session}.key")
    with pytest.raises(Refusal, match=r"envelope\.open"):
        read_key(later, enclave, volume.folder / f"{later.session}.key")


@threat(rows.VOLUME_COPIED)
@pytest.mark.parametrize("change", [b"", b"\0" * 100, None], ids=["empty", "zeros", "one bit"])
def test_a_changed_file_does_not_open(volume: Volume, change: bytes | None) -> None:
    data = bytearray(volume.file.read_bytes())
    data[-1] ^= 1
    volume.file.write_bytes(data if change is None else change)
    with pytest.raises(Refusal, match=r"seal\."):
        read_key(volume.owner, volume.world.enclave("machine-a", APP_ENCLAVE), volume.file)


@threat(rows.VOLUME_TRAPPED)
@pytest.mark.parametrize("writer", [None, os.O_RDWR], ids=["nobody writes", "a writer is silent"])
def test_a_pipe_in_place_of_the_key_keeps_nobody_waiting(volume: Volume, writer: int | None) -> None:
    """Whoever shares the volume can put one there; the agent would wait for ever."""
    volume.file.unlink()
    os.mkfifo(volume.file)
    held = [] if writer is None else [os.open(volume.file, writer)]
    with pytest.raises(Refusal, match=r"seal\.format"):
        read_key(volume.owner, volume.world.enclave("machine-a", APP_ENCLAVE), volume.file)
    for descriptor in held:
        os.close(descriptor)


def test_a_volume_that_only_the_host_writes_serves(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing the file is tidiness: it ends nothing where the application may not."""

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    enclave = volume.world.enclave("machine-a", APP_ENCLAVE)
    assert read_key(volume.owner, enclave, volume.file) == application_key(
        volume.k, volume.owner.session, volume.owner.t2
    )


@threat(rows.HOST_FILE_WRITTEN)
def test_the_host_does_not_write_through_a_link_that_the_application_put_there(volume: Volume, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("the host's own file")
    other = "cd" * 16
    (volume.folder / f"{other}.new").symlink_to(victim)
    (volume.folder / f"{other}.key").symlink_to(victim)
    order = DeliverKey(
        app="a1", app_session=other, enclave_key=volume.owner.public_key, suite="x25519", t2=bytes(64), volume=0
    )
    done = deliver(volume.world.enclave("machine-a", HOST_ENCLAVE), volume.k, [volume.folder], order)
    assert done.problem is None
    assert victim.read_text() == "the host's own file"
    assert not (volume.folder / f"{other}.key").is_symlink()


@threat(rows.HOST_FILE_WRITTEN)
def test_nor_through_one_that_comes_back_before_the_file_is_opened(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, other = tmp_path / "victim", "cd" * 16
    victim.write_text("the host's own file")
    (volume.folder / f"{other}.new").symlink_to(victim)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    order = DeliverKey(
        app="a1", app_session=other, enclave_key=volume.owner.public_key, suite="x25519", t2=bytes(64), volume=0
    )
    done = deliver(volume.world.enclave("machine-a", HOST_ENCLAVE), volume.k, [volume.folder], order)
    assert done.problem is not None and done.problem.code == "host.volume"
    assert victim.read_text() == "the host's own file"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"volume": 1}, "host.volume"),
        ({"suite": "none"}, "host.volume"),
        ({"enclave_key": bytes(31)}, "envelope.key"),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_answered_with_its_reason(
    volume: Volume, changes: dict[str, Any], code: str
) -> None:
    order = DeliverKey(
        app="a1", app_session="cd" * 16, enclave_key=volume.owner.public_key, suite="x25519", t2=bytes(64), volume=0
    ).model_copy(update=changes)
    done = deliver(volume.world.enclave("machine-a", HOST_ENCLAVE), volume.k, [volume.folder], order)
    assert done.problem is not None
    assert done.problem.code == code


def test_a_volume_that_is_gone_is_answered_with_its_reason(volume: Volume, tmp_path: Path) -> None:
    order = DeliverKey(
        app="a1", app_session="cd" * 16, enclave_key=volume.owner.public_key, suite="x25519", t2=bytes(64), volume=0
    )
    done = deliver(volume.world.enclave("machine-a", HOST_ENCLAVE), volume.k, [tmp_path / "none"], order)
    assert done.problem is not None
    assert done.problem.code == "host.volume"


@threat(rows.VOLUME_COPIED)
def test_the_key_is_bound_to_its_session_and_transcript(volume: Volume) -> None:
    """Also for who has the very key that the quote named."""
    enclave = volume.world.enclave("machine-a", APP_ENCLAVE)
    for session, t2 in (("cd" * 16, volume.owner.t2), (volume.owner.session, bytes(64))):
        other = volume.session(session)
        other.t2, other._private, other.public_key = t2, volume.owner._private, volume.owner.public_key
        with pytest.raises(Refusal, match=r"envelope\.open"):
            read_key(other, enclave, volume.file)
    read_key(volume.owner, enclave, volume.file)


async def test_state_after_a_refused_proof_has_no_secret_left(site: Deployment) -> None:
    host, record, _ = await granted_app(site)
    site.wire.inject(subjects.inbound("app", "h1.a1", "colocation_proof"), message(record, bytes(64)))
    await site.until("app", "a1", "refused")
    await site.quiet()
    after = await site.record(AppRecord, record.session)
    assert after.state is State.REFUSED
    assert after.handshake is None
    assert after.channel is None
    await asyncio.sleep(0)
    assert host.k is not None
