"""Every secret of a run, in the forms in which one could slip out, and where to look for them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel

from attestgate.bus import subjects
from attestgate.bus.api import Message
from attestgate.bus.client.nats import connect
from attestgate.compose.demo.wiretap import Wiretap
from attestgate.compose.local.stack import Stack
from attestgate.manager.records.record_cipher import RecordCipher, StorageKeys
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas.base import Secret, parse_json, unpack
from attestgate.schemas.binding import application_key, first_transcript, next_transcript
from attestgate.schemas.messages import Challenge, Sealed
from attestgate.schemas.signing import Signed
from tests.support.processes import processes_of
from tests.support.story import HOST, MACHINE

_SEED = re.compile(rb"S[OAUNC][A-Z2-7]{56}")
"""An nkey seed in NATS's spelling."""
Named = dict[str, bytes]
"""Secrets by where they are from."""


def forms(secret: bytes) -> set[bytes]:
    """A secret raw, in hexadecimal, and within base64 of whatever stands around it."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for before in range(3):
        # Only whole groups of three bytes look the same whatever their neighbours are.
        whole = secret[-before % 3 :]
        whole = whole[: len(whole) - len(whole) % 3]
        found |= {base64.b64encode(whole), base64.urlsafe_b64encode(whole)}
    return found


def at_rest(stack: Stack) -> Named:
    """What the files of keys hold: of the deployment, the gateway, the simulated machines and their authority."""
    passphrase = bytes.fromhex((stack.plan.keys / "manager" / "pki-passphrase").read_text())
    found: Named = {}
    for path in key_files(stack):
        data, name = path.read_bytes(), path.relative_to(stack.plan.folder).as_posix()
        if b"PRIVATE KEY-----" in data:
            found |= {f"{name} {part}": value for part, value in _numbers(data, passphrase)}
        elif seeds := _SEED.findall(data):
            found |= {f"{name} text": seeds[0], f"{name} raw": base64.b32decode(seeds[0] + b"=" * 6)[2:34]}
        elif path.name == "storage-keys.json":
            found |= {f"{name} {epoch}": bytes.fromhex(key) for epoch, key in json.loads(data)["epochs"].items()}
        elif path.name in ("salt", "pki-passphrase"):
            found[name] = bytes.fromhex(data.decode())
        elif path.suffix == ".secret":
            found[name] = data
    return found


def _numbers(pem: bytes, passphrase: bytes) -> Iterator[tuple[str, bytes]]:
    key = load_pem_private_key(pem, passphrase if b"ENCRYPTED" in pem else None)
    if isinstance(key, Ed25519PrivateKey):
        yield "private", key.private_bytes_raw()
    elif isinstance(key, EllipticCurvePrivateKey):
        yield "private", key.private_numbers().private_value.to_bytes(32, "big")
    elif isinstance(key, RSAPrivateKey):
        yield "prime", key.private_numbers().p.to_bytes((key.key_size + 15) // 16, "big")
    else:
        raise AssertionError(f"no such key is made here: {type(key)}")


def key_files(stack: Stack) -> set[Path]:
    """The files that are meant to hold secrets."""
    plan = stack.plan
    made = [path for path in plan.keys.rglob("*") if path.is_file()]
    simulated = [p for p in (plan.folder / "simulated").rglob("*") if p.suffix in (".key", ".secret")]
    return {*made, *simulated, plan.signer, plan.folder / "gateway" / "server.key"}


async def overheard(stack: Stack, tap: Wiretap, app: str) -> dict[str, bytes]:
    """Start an application anew through a wiretap: T2 of its sessions, made of what the bus's operator sees."""
    name, challenges = subjects.app_name(HOST, app), list[bytes]()

    async def challenged(message: Message) -> None:
        challenges.append(message.data)

    listener = await connect([stack.server.url], stack.plan.credentials("app", name))
    try:
        await listener.listen(subjects.outbound("app", name, "challenge"), challenged)
        await stack.agent(app).stop()
        mark = stack.events.mark
        await stack.start_app(app, HOST, MACHINE, bus=tap.url)
        await stack.until("app", app, "admitted", since=mark, within_s=60)
    finally:
        await listener.close()
    sent = tap.published(subjects.inbound("app", name, "evidence"))
    evidence = {unpack(Sealed, data).session: data for data in sent}
    found = {}
    for data in challenges:
        signed = unpack(Signed, data)
        challenge = unpack(Challenge, signed.payload)
        t0 = first_transcript(challenge.suite, "app", challenge.session, app, signed.signer)
        t1 = next_transcript(t0, "down", "challenge", data)
        if challenge.session in evidence:
            found[challenge.session] = next_transcript(t1, "up", "evidence", evidence[challenge.session])
    return found


async def in_records(stack: Stack, transcripts: dict[str, bytes]) -> Named:
    """What the live session records hold, opened with the storage key: K, session keys, channel secrets.

    And every K_app that a host's K makes, of the sessions whose T2 is in `transcripts`.
    """
    keys = stack.plan.keys / "manager" / "storage-keys.json"
    cipher = RecordCipher(lambda: parse_json(StorageKeys, keys.read_bytes(), source=str(keys)))
    bus = await connect([stack.server.url], stack.plan.credentials("manager", "manager"))
    found: Named = {}
    try:
        bucket = bus.bucket("sessions")
        for key in await bucket.keys():
            entry = await bucket.get(key)
            kinds: dict[str, type[HostRecord | AppRecord]] = {"host": HostRecord, "app": AppRecord}
            kind = kinds.get(key.split(".")[0])
            if kind is None or entry is None or entry.value is None:
                continue
            record = cipher.open(kind, "sessions", key, entry.value)
            found |= {f"{key} {name}": secret.reveal() for name, secret in _within(record)}
            if isinstance(record, HostRecord) and record.k is not None:
                for session in record.apps.keys() & transcripts.keys():
                    k_app = application_key(record.k, session, transcripts[session])
                    found[f"{key} K of {session}"] = k_app.reveal()
    finally:
        await bus.close()
    return found


def _within(model: BaseModel, *path: str) -> Iterator[tuple[str, Secret]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Secret) and len(value):
            yield ".".join((*path, name)), value
        elif isinstance(value, BaseModel):
            yield from _within(value, *path, name)


def written(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """Everything that the run wrote and the world may see: files, and the arguments and environment of processes.

    But for the images of enclaves: copies of installed code, made before there is any secret.
    """
    meant = key_files(stack)
    for path in stack.plan.folder.rglob("*"):
        if path.is_file() and path not in meant and "images" not in path.parts:
            yield path.relative_to(stack.plan.folder).as_posix(), path.read_bytes()
    for process in processes_of(stack.plan.folder):
        for part in ("cmdline", "environ"):
            try:
                yield f"{part} of {process}", (Path("/proc") / process.split()[0] / part).read_bytes()
            except OSError:
                continue  # it has ended since


def leaks(secrets: Named, where: Iterator[tuple[str, bytes]]) -> list[str]:
    """Which secret stands where it should not."""
    needles = {form: name for name, secret in secrets.items() for form in forms(secret)}
    return [f"{name} in {place}" for place, data in where for form, name in needles.items() if form in data]
