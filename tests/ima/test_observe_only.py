"""Observe-only: what an enforcing policy would refuse is admitted, and marked so wherever it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from compose.policies import Policies
from manager.pki.issue import read_marks
from manager.sessions.record import AppRecord
from schemas.messages import Outcome
from tests.ima.lists import framed
from tests.sessions.harness import World, deployed


async def test_a_host_that_is_only_observed_is_admitted_and_marked_everywhere(tmp_path: Path) -> None:
    *known, _ = framed("clean")
    (tmp_path / "known").write_bytes(b"".join(known))
    policies = Policies.learn(tmp_path / "known")
    observing = json.dumps(json.loads(policies.host) | {"mode": "observe-only"}).encode()
    world = World(tmp_path / "world")
    async with deployed(world, tmp_path / "site") as site:
        await site.order(replace(policies, host=observing).command(world.author, version=2))
        await site.admitted()
        outcomes = [Outcome.model_validate(event.data["outcome"]) for event in site.events if "outcome" in event.data]
        assert outcomes and all(outcome.observe_only for outcome in outcomes)
        assert {event.kind for event in site.events if "outcome" in event.data} == {"host", "app"}
        (record,) = await site.records(AppRecord)
        assert "observe-only" in read_marks(x509.load_pem_x509_certificate(record.certificate.encode()))
        assert all("observe-only" in lease.marks for lease in site.gateway.leases)

        await site.order(policies.command(world.author, version=3))
        await site.advance(10)
        untrusted = await site.until("host", "h1", "untrusted")
        refused = Outcome.model_validate(untrusted.data["outcome"])
        assert not refused.observe_only, "an enforcing one has refused it"
