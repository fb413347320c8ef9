"""The readable line beside a sealed session record, for people. No decision depends on it; it holds no secret."""

from __future__ import annotations

from attestgate.schemas.admission import Integrity
from attestgate.schemas.base import Id, Label, Model, Reasons, Seconds, SessionId
from attestgate.schemas.binding import Role


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

    def body(self) -> bytes:
        """The line as JSON."""
        return self.model_dump_json(exclude_none=True).encode()
