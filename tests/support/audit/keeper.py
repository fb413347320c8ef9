"""A worker's hand on the decision log, and what the bus's operator may do to the log's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.api import Bus, Conflict, StoredMessage
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.client.setup import ensure
from attestgate.bus.layout import LOG
from attestgate.manager.audit.alarms import Alarms
from attestgate.manager.audit.check import check
from attestgate.manager.audit.copy import LogCopy, read_log
from attestgate.manager.audit.head import MOST
from attestgate.manager.audit.intake import Intake, subject_of
from attestgate.manager.audit.last_head import LastHead
from attestgate.manager.audit.log import DecisionLog
from attestgate.schemas.audit import Admitted, Decision, sign_decision
from attestgate.schemas.checkpoint import Checkpoint, open_checkpoint
from attestgate.schemas.signing import Signer, TrustedKeys

KEY = Signer("test.example", Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
SIGNERS = {KEY.public}
MANAGERS = TrustedKeys(KEY.deployment, {"manager": SIGNERS})
SESSION = "ab" * 16
NOW = 1_800_000_000


class Keeper:
    """A worker's hand on the log, and what it told."""

    def __init__(
        self,
        bus: Bus,
        folder: Path,
        key: Signer = KEY,
        signers: frozenset[bytes] = frozenset(SIGNERS),
        most: int = MOST,
    ) -> None:
        self.bus = bus
        self.at = float(NOW)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.news = asyncio.Event()
        managers = TrustedKeys(key.deployment, {"manager": set(signers)})
        self.intake = Intake(bus, managers, lambda: self.at)
        self.memory = LastHead(folder / "decision-log.json")
        telling = Alarms("w", self._emit)
        self.log = DecisionLog(bus, self.intake, self.memory, key, managers, telling, lambda: self.at, most)

    async def _emit(self, _kind: str, _id: str, what: str, **data: Any) -> None:
        self.told.append((what, data))
        self.news.set()

    async def decide(self, first: int, last: int, session: str = SESSION) -> None:
        """Hand in the entries of these numbers."""
        for number in range(first, last + 1):
            await self.intake.put(*entry(number, session))

    async def grow(self) -> None:
        """Take in all that the stream has."""
        while True:
            try:
                if not await self.log.grow():
                    return
            except Conflict:
                continue

    @property
    def head(self) -> Checkpoint:
        """The newest head that it has checked."""
        return open_checkpoint(self.log.checkpoint, SIGNERS)


def entry(number: int, session: str = SESSION, key: Signer = KEY, id: str = "") -> tuple[str, bytes]:
    """An entry of a session: subject and bytes, the same each time."""
    decision = Decision(
        id=id or f"{session[:16]}{number:016x}",
        kind="app",
        subject="a1",
        session=session,
        number=number,
        at=NOW,
        by="attestgate/w",
        fact=Admitted(serial=f"{number + 0x1000:x}", gateways=["g1"]),
    )
    subject = subject_of(decision)
    return subject, sign_decision(key, subject, decision)


async def copied(bus: Bus) -> LogCopy:
    """The log as the bus shows it."""
    return await read_log(bus, MANAGERS)


async def findings(bus: Bus, *since: Checkpoint, at: int = NOW) -> list[str]:
    """What is found wrong with the log, by its codes."""
    return [finding.code for finding in check(await copied(bus), MANAGERS, since, at)]


async def rewrite(bus: NatsBus, messages: Sequence[StoredMessage | tuple[str, bytes]]) -> None:
    """What the bus's operator can do: the stream as he likes it, its sequences from 1."""
    await bus.jetstream.delete_stream(LOG.name)
    await ensure(bus)
    for message in messages:
        subject, data = (message.subject, message.data) if isinstance(message, StoredMessage) else message
        await bus.publish(subject, data)
