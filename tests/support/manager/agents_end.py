"""An agent's end of a session's channel, made of the manager's record: what who holds its memory can say."""

from __future__ import annotations

from attestgate.bus.crypto.channel import Channel
from attestgate.manager.sessions.record import HostRecord


def agents_end(host: HostRecord) -> Channel:
    """The channel from which a host's agent would send its next message."""
    assert host.channel is not None
    return Channel(
        session=host.session,
        secret=host.channel.secret,
        base=host.channel.base,
        sends="up",
        sent=host.channel.opened,
        sent_chain=host.channel.opened_chain,
        opened=host.channel.sent,
        opened_chain=host.channel.sent_chain,
    )
