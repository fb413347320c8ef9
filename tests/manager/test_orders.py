"""An order reaches every session of its subject, and reads no more of the bus for it than that subject's own keys."""

from __future__ import annotations

from typing import Any

import pytest

from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.schemas.enrolment import AppEnrolment, Enrol, Placement, RecheckNow, Revoke
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import APP_ENCLAVE
from tests.support.threats import rows, threat


@threat(rows.REVOCATION_HIDDEN)
async def test_an_application_is_revoked_on_each_host_that_it_has_a_session_on(site: Deployment) -> None:
    """Also where its enrolment no longer places it."""
    places = {"h1": "machine-a", "h2": "machine-b"}

    async def enrol(*hosts: str) -> None:
        placements = [Placement(host=host, volume=0) for host in hosts]
        subject = AppEnrolment(id="a1", mrenclaves=[APP_ENCLAVE.mrenclave.hex()], placements=placements)
        await site.order(Enrol(subject=subject))

    await enrol(*places)
    for host, machine in places.items():
        since = len(site.events)
        await site.enrol_host(host, machine)
        await site.host(host, machine)
        await site.until("host", host, "trusted")
        await site.app("a1", host, machine)
        await site.until("app", "a1", "admitted", since=since)
    await site.quiet()
    await enrol("h1")
    since = len(site.events)
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await site.quiet()
    revoked = {e.session for e in site.events[since:] if (e.kind, e.what) == ("app", "revoked")}
    assert len(revoked) == 2


@pytest.mark.parametrize("kind", ["host", "app"])
async def test_an_order_looks_at_its_subjects_keys_only(
    site: Deployment, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.admitted()
    listed: list[str] = []
    keys = MemoryBucket.keys

    async def noted(self: MemoryBucket, pattern: str = ">") -> list[str]:
        listed.append(pattern)
        return await keys(self, pattern)

    monkeypatch.setattr(MemoryBucket, "keys", noted)
    since = len(site.events)
    id = {"host": "h1", "app": "a1"}[kind]
    await site.order(RecheckNow(kind=kind, id=id))
    await site.until(kind, id, "rechecked", since=since)
    assert listed == {"host": [], "app": ["current.app.a1.*", "pending.app.a1.*"]}[kind]
