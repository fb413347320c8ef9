"""How long a tree of the log lasts, and that two of them fit into the bucket: the figures of docs/decision-log.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestgate.bus.api import ONCE
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.layout import LOG, TREE
from attestgate.manager.audit.head import HEAD, MOST, TILE, tile_key
from attestgate.manager.audit.intake import subject_of
from attestgate.manager.audit.merkle import HASH
from attestgate.schemas import audit
from attestgate.schemas.settings import Timing
from tests.support.audit.decisions import decided
from tests.support.audit.keeper import KEY, SESSION
from tests.support.bus.fixtures import Join
from tests.support.manager.deployment import deployed
from tests.support.manager.world import World

PAGE = Path(__file__).parents[2] / "docs" / "decision-log.md"
APPLICATIONS = 1000
DAY_S = 86_400
RENEWALS = 4


async def stored(bus: NatsBus, stream: str) -> int:
    """The bytes that a stream holds, as the server counts them against its limit."""
    return (await bus.jetstream.stream_info(stream)).state.bytes


@pytest.mark.stack
async def test_two_trees_fit_into_the_bucket(join: Join) -> None:
    """Every tile of both, and a head twice while it is exchanged, however large."""
    bus = await join("manager", "m")
    bucket = bus.bucket(TREE.name)
    tiles = []
    for tree in (2, 4, 6):
        await bucket.put(tile_key(MOST // TILE - 1, tree), bytes(TILE * HASH))
        tiles.append(await stored(bus, TREE.stream))
    tile = tiles[0]
    assert tiles == [tile] * 3, "each takes the place of the one before"
    await bucket.put(HEAD, bytes(TREE.max_value - 1024))
    with_head = await stored(bus, TREE.stream)
    assert 2 * (MOST // TILE) * tile + 2 * (with_head - tile) < TREE.max_bytes
    assert MOST % TILE == 0


@pytest.mark.stack
async def test_the_stream_holds_fewer_entries_than_a_tree(join: Join) -> None:
    """Be they as small as entries get: so what it holds is in the newest tree or the one before."""
    bus = await join("manager", "m")
    smallest = audit.Decision(id=SESSION, kind="app", subject="a", at=0, by="m", fact=audit.WithdrawnFact(serial="01"))
    subject = subject_of(smallest)
    await bus.publish(subject, audit.sign_decision(KEY, subject, smallest), headers=ONCE)
    assert LOG.max_bytes // await stored(bus, LOG.name) < MOST


@pytest.mark.stack
async def test_how_long_a_tree_lasts(world: World, join: Join, tmp_path: Path) -> None:
    """The page's figures, from the entries of counted enrolments and renewals, as the server stores them, the default
    settings, and the tree's size."""
    timing = Timing(lease_s=30, recheck_s=10, evidence_window_s=10, skew_s=5, certificate_s=60)
    async with deployed(world, tmp_path, timing=timing) as site:
        await site.admitted()
        enrolled = await decided(site.bus, site.world, int(site.clock.at))
        found = enrolled
        # The last of a renewal is that the certificate before it is withdrawn.
        while sum(isinstance(entry.fact, audit.WithdrawnFact) for entry in found) < RENEWALS:
            since = len(site.events)
            await site.advance(10)
            for kind, id in (("host", "h1"), ("app", "a1")):
                await site.until(kind, id, "rechecked", since=since)
            await site.quiet()
            found = await decided(site.bus, site.world, int(site.clock.at))
        renewed = found[len(enrolled) :]
        messages = site.wire.stored(LOG.name)[len(enrolled) :]
    a_renewal, rest = divmod(len(renewed), RENEWALS)
    assert rest == 0 and {entry.kind for entry in renewed} == {"app"}
    bus = await join("manager", "m")
    for message in messages:
        await bus.publish(message.subject, message.data, headers=ONCE)
    bytes_a_renewal = await stored(bus, LOG.name) / RENEWALS

    by_default, longest = Timing(), Timing(certificate_s=DAY_S)
    a_day, a_day_longest = (APPLICATIONS * DAY_S // renewed_after(timing) for timing in (by_default, longest))
    made = [sum(entry.kind == kind for entry in enrolled) for kind in ("host", "app")]
    said = [
        f"A tree has {MOST:,} entries",
        f"A host's enrolment makes {made[0]} entry, an application's {made[1]}, each renewal of its certificate "
        f"{a_renewal}.",
        f"valid for {by_default.certificate_s // 60} minutes and renewed after {renewed_after(by_default) // 60}",
        f"{APPLICATIONS:,} applications make {a_day * a_renewal:,} entries a day",
        f"a tree lasts {MOST // (a_day * a_renewal)} days",
        f"their content stays in the stream for {int(LOG.max_bytes / (a_day * bytes_a_renewal))} days",
        f"With certificates of one day, a tree lasts {MOST // (a_day_longest * a_renewal)} days",
    ]
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [sentence for sentence in said if sentence not in page] == []


def renewed_after(timing: Timing) -> int:
    """Seconds after which a certificate is renewed, at the earliest."""
    return timing.certificate_s - max(timing.certificate_s // 3, timing.lease_s + timing.recheck_s)
