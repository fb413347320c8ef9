"""The readable line beside a sealed session record, for people. No decision depends on it; it holds no secret."""

from __future__ import annotations

import structlog

from attestgate.schemas.admission import Integrity
from attestgate.schemas.base import Id, Label, Model, Reasons, Refusal, Seconds, SessionId, parse_json
from attestgate.schemas.binding import Role
from attestgate.schemas.bounds import bounds_of

log = structlog.get_logger(__name__)


class Summary(Model):
    """A session after its last transition. `id` is the host's or the application's."""

    role: Role
    id: Id
    host: Id
    session: SessionId
    state: Label
    created_at: Seconds
    lease_end: Seconds | None = None
    next_recheck: Seconds | None = None
    simulated: bool | None = None
    integrity: Integrity | None = None
    serial: Label | None = None
    """An application's certificate, if it has one."""
    host_session: SessionId | None = None
    """The session of its host that an application depends on."""
    reasons: Reasons = []
    """Why it ended."""

    @property
    def name(self) -> str:
        """The name of its subject on the bus."""
        return self.id if self.role == "host" else f"{self.host}.{self.id}"

    def body(self) -> bytes:
        """The line as JSON."""
        return self.model_dump_json(exclude_none=True).encode()


def summary_of(key: str, value: bytes) -> Summary | None:
    """The line stored under a key, or None, which is logged, if it is not one: nothing stored there ends a reader."""
    try:
        return parse_json(Summary, value, source=key, limit=bounds_of(Summary).size)
    except Refusal as refusal:
        log.warning("skipped: not a summary", key=key, why=refusal.reasons[0].code)
        return None
