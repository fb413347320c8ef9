"""Sends inter-session messages: encrypted under the storage key and bound to the subject, as records are to their key.

The bus can lose or repeat such a message, but not forge one.
"""

from __future__ import annotations

from pydantic import BaseModel

from attestgate.bus import subjects
from attestgate.bus.api import Bus
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.sessions.inter_session import WORK, SessionMessage
from attestgate.schemas.base import pack
from attestgate.schemas.binding import Role


class SessionMessages:
    """Messages from one session to another, or to itself; any worker may handle them."""

    def __init__(self, bus: Bus, cipher: RecordCipher) -> None:
        self._bus = bus
        self._cipher = cipher

    async def send(
        self, role: Role, session: str, what: str, model: BaseModel, *, message_id: str | None = None
    ) -> None:
        """Send a message to a session. Raises BusError."""
        await self.publish(subjects.work(role, session, what), pack(model), message_id)

    async def publish(self, subject: str, data: bytes, message_id: str | None) -> None:
        """Publish a packed message on its subject, once per `message_id`. Raises BusError."""
        await self._bus.publish(
            subject, self._cipher.seal(WORK, subject, 0, SessionMessage(data=data)), message_id=message_id
        )

    def open(self, subject: str, data: bytes) -> bytes:
        """The packed message received on a subject. Raises Refusal `record.open`."""
        return self._cipher.open(SessionMessage, WORK, subject, data).data
