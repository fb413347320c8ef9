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

from attestgate.bus.client.nats import connect
from attestgate.compose.local.stack import Stack
from attestgate.manager.records.vault import StorageKeys, Vault
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas.base import Secret, parse_json
from attestgate.schemas.binding import application_key
from tests.support.processes import processes_of

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


async def in_records(stack: Stack) -> Named:
    """What the live session records hold, opened with the storage key: K, session keys, channel secrets."""
    keys = stack.plan.keys / "manager" / "storage-keys.json"
    vault = Vault(lambda: parse_json(StorageKeys, keys.read_bytes(), source=str(keys)))
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
            record = vault.open(kind, "sessions", key, entry.value)
            found |= {f"{key} {name}": secret.reveal() for name, secret in _within(record)}
            if isinstance(record, HostRecord) and record.k is not None:
                derived = {session: application_key(record.k, session).reveal() for session in record.apps}
                found |= {f"{key} K of {session}": secret for session, secret in derived.items()}
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
