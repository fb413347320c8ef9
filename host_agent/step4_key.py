"""Step 4, the host's side: take K into the enclave's memory, and prove it."""

from __future__ import annotations

from attestgate.bus.agent.link import AgentSession
from attestgate.schemas.base import Secret
from attestgate.schemas.binding import host_proof
from attestgate.schemas.messages import HostGrant


async def take_key(session: AgentSession, patience_s: float) -> Secret:
    """K, once it is granted and proven. It is kept only in the caller's memory. Raises SessionOver."""
    grant = await session.take_grant(HostGrant, patience_s)
    await session.prove(host_proof(grant.k, grant.n1, session.transcript), grant.channel)
    return grant.k
