"""Observe-only: what an enforcing policy would refuse is admitted, and marked so wherever it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from attestgate.compose.local.policies import Policies
from attestgate.manager.pki.issue import read_marks
from attestgate.manager.sessions.record import AppRecord
from attestgate.schemas.messages import Outcome
from attestgate.schemas.settings import Timing
from tests.support.ima.lists import framed
from tests.support.manager.deployment import deployed
from tests.support.manager.world import LISTS, World


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


async def test_a_certificate_is_renewed_as_its_host_is_observed_by_then(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    policies = world.policies
    observing = json.dumps(json.loads(policies.host) | {"mode": "observe-only"}).encode()
    timing = Timing(lease_s=30, recheck_s=10, evidence_window_s=10, skew_s=5, certificate_s=60)
    async with deployed(world, tmp_path / "site", timing=timing) as site:
        await site.admitted()
        await site.order(replace(policies, host=observing).command(world.author, version=2))
        site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
        while "renewed" not in site.what("app", "a1"):
            since = len(site.events)
            await site.advance(10)
            for kind, id in (("host", "h1"), ("app", "a1")):
                rechecked = await site.until(kind, id, "rechecked", since=since)
            await site.quiet()
        (record,) = await site.records(AppRecord)
        assert record.outcome == Outcome.model_validate(rechecked.data["outcome"])
        assert record.outcome.observe_only
        assert "observe-only" in read_marks(x509.load_pem_x509_certificate(record.certificate.encode()))
