"""Answers that are asked for and not read: the server holds so much for each connection, and ends it at the limit."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.auth.account_claims import JETSTREAM
from attestgate.bus.auth.credentials import issue
from attestgate.bus.auth.permissions import API, EDGE_API, MANAGER, ROLES, VIEWER
from attestgate.bus.client.errors import Unanswered
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.server.embedded import MAX_PENDING, EmbeddedServer
from attestgate.manager.handlers.worker import BATCH
from attestgate.schemas.base import MAX_MESSAGE
from tests.support.bus.fixtures import Join
from tests.support.bus.unread import Unread
from tests.support.threats import rows, threat

WITHIN_S = 60.0
"""Patience with a busy machine; nothing is timed."""
DOCS = Path(__file__).parents[2] / "docs"
COMPOSE = DOCS.parent / "compose"
CONNECTIONS = 3
ASKED = {VIEWER: layout.SUMMARIES, "operator": layout.POLICIES, "gateway": layout.ADMISSIONS}
"""What each role that reads asks for: of what it may read, a bucket of large values."""
LARGEST_POLICY = layout.POLICIES.max_value * 4 // 3
MAKING = 16 * LARGEST_POLICY
"""Room for answers in the making, which count for no connection yet: of a worker of the server's API for each of them,
in base64. Most are far smaller."""
STREAMS = 160 * layout.MIB
"""What the server takes by itself here, with the streams' caches."""
LIMIT = STREAMS + CONNECTIONS * MAX_PENDING + MAKING
"""GOMEMLIMIT, as a deployment computes it: what may be held at once. Go then collects in time what is done with; what
is held beyond it, no collection gives back, and the limit does not hold."""
SOFT = 6, 5
"""Go may exceed its limit for a moment: by a fifth, here."""
MEM_LIMIT, GOMEMLIMIT = 4096, 2560
"""What the stack gives nats-server, in MiB: the kernel's limit, which ends the process, and Go's. Between them is room
for what viewers' consumers deliver."""


def peak(server: EmbeddedServer) -> int:
    """The most memory that the server has had resident (proc(5)), in bytes, without its program's own pages."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    most, program = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmHWM", "RssFile"))
    assert most and program
    return (int(most[1]) - int(program[1])) * 1024


@pytest.fixture
def keys_of(keys: Path, tmp_path: Path) -> Path:
    """Credentials of a thief of each role, issued before."""
    for role in ROLES:
        name = ".".join(["thief"] * subjects.name_tokens(role))
        issue(keys, role, name, tmp_path / f"{role}.thief")
    return tmp_path


@pytest.fixture(autouse=True)
def _collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMEMLIMIT", str(LIMIT))


@threat(rows.UNREAD, rows.VIEWER_FLOODS)
@pytest.mark.stack
@pytest.mark.parametrize("role", ASKED)
async def test_what_is_not_read_takes_bounded_memory(
    role: str, server: EmbeddedServer, join: Join, keys_of: Path
) -> None:
    manager, honest = await join(MANAGER, "m"), await join(role, "honest")
    bucket = ASKED[role]
    size = min(bucket.max_value, 7 * layout.MIB) - layout.HEADERS
    for number in range(4):
        await manager.bucket(bucket.name).put(f"k{number}", os.urandom(size))
    await copied(honest, bucket)
    prefix = API if role == VIEWER else EDGE_API
    times = 2 * MAX_PENDING // size
    async with unread(server, keys_of / f"{role}.thief") as thieves:
        for thief in thieves:
            thief.ask(f"{prefix}.STREAM.MSG.GET.{bucket.stream}", {"seq": 1, "next_by_subj": ">"}, times)
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(thief.disconnected() for thief in thieves))
    await copied(honest, bucket)
    assert honest.connections == manager.connections == 1
    assert peak(server) <= LIMIT * SOFT[0] // SOFT[1]


async def copied(reader: NatsBus, bucket: layout.BucketLayout) -> None:
    """Return once a reader sees all four: requests wait in one queue, in which others may be ahead."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(Unanswered):
                if len(await reader.bucket(bucket.name).keys()) == 4:
                    return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def unread(server: EmbeddedServer, credentials: Path) -> AsyncIterator[list[Unread]]:
    connections = [await Unread.connect(server.url, credentials) for _ in range(CONNECTIONS)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


@threat(rows.UNREAD, rows.VIEWER_FLOODS)
@pytest.mark.stack
@pytest.mark.parametrize("role", [role for role in ROLES if ROLES[role].max_connections > 0])
async def test_a_role_that_reads_has_so_many_connections(
    role: str, server: EmbeddedServer, join: Join, keys_of: Path
) -> None:
    """One credential can take them all; that keeps nobody of another role out, and ends with it."""
    held = [await Unread.connect(server.url, keys_of / f"{role}.thief") for _ in range(ROLES[role].max_connections)]
    with pytest.raises(ConnectionError, match="maximum account active connections exceeded"):
        await Unread.connect(server.url, keys_of / f"{role}.thief")
    for other in ROLES:
        if other != role:
            await join(other, ".".join(["honest"] * subjects.name_tokens(other)))
    for connection in held:
        connection.close()
    await join(role, "honest")


@threat(rows.UNREAD)
def test_connections_are_bounded_where_much_is_read_and_unbounded_where_one_could_lock_out_a_fleet() -> None:
    bounded = {name for name, role in ROLES.items() if role.max_connections > 0}
    assert bounded == set(ASKED)
    assert {name for name, role in ROLES.items() if role.calls} == {*bounded, MANAGER}


def test_the_pages_state_the_bound() -> None:
    held = sum(role.max_connections for role in ROLES.values() if role.max_connections > 0) * MAX_PENDING
    threats, operations = ((DOCS / name).read_text(encoding="utf-8") for name in ("threats.md", "operations.md"))
    assert f"up to {MAX_PENDING // layout.MIB} MiB" in threats
    for page in (threats, operations):
        assert f"{held / 1024**3:.1f} GiB" in page
    for name in ("gateway", VIEWER, "operator"):
        assert f"{name}s {ROLES[name].max_connections}" in threats


def test_the_stack_gives_the_servers_what_they_may_hold() -> None:
    held = sum(role.max_connections for role in ROLES.values() if role.max_connections > 0) * MAX_PENDING
    for name in ("compose.yaml", "compose.cluster.yaml"):
        text = (COMPOSE / name).read_text(encoding="utf-8")
        limit = re.search(r"mem_limit: (\d+)g\n +environment: \{GOMEMLIMIT: (\d+)MiB\}", text)
        assert limit, name
        assert (int(limit[1]) * 1024, int(limit[2])) == (MEM_LIMIT, GOMEMLIMIT)
        assert held < GOMEMLIMIT * layout.MIB
        assert GOMEMLIMIT * layout.MIB + JETSTREAM[VIEWER]["consumer"] * layout.COPY <= MEM_LIMIT * layout.MIB


def largest_pulled(consumer: layout.Consumer) -> int:
    """The most bytes that a worker's request to a consumer brings."""
    size = layout.STREAMS[consumer.stream].max_msg_size
    batch = min(consumer.at_once, BATCH, layout.most_pulled(consumer))
    return batch * (size if size > 0 else 64 * layout.KIB)


PAGES = 2 * (4 * layout.MIB + 256 * layout.KIB)
NEEDED = sum(map(largest_pulled, layout.CONSUMERS.values())) + LARGEST_POLICY + PAGES


def test_the_limit_is_the_smallest_that_a_manager_needs() -> None:
    largest = MAX_MESSAGE + layout.HEADERS
    assert NEEDED <= MAX_PENDING < NEEDED + largest


@pytest.mark.stack
async def test_a_slow_manager_is_not_cut_off(server: EmbeddedServer, join: Join, keys_of: Path) -> None:
    """All at once that it may have asked for, each as large as can be, and none of it read until all of it is there."""
    looks, host, operator = await join(MANAGER, "looks"), await join("host", "h"), await join("operator", "o")
    for step in sorted(subjects.LISTS):
        await host.publish(subjects.inbound("host", "h", step), bytes(MAX_MESSAGE))
    await operator.publish(subjects.operator("o", subjects.POLICY_COMMANDS[0]), bytes(MAX_MESSAGE))
    await looks.bucket("policies").put("k", bytes(layout.POLICIES.max_value - layout.HEADERS))
    for number in range(20):
        await looks.bucket("summaries").put(f"k{number}", bytes(250 * layout.KIB))
    slow = await Unread.connect(server.url, keys_of / f"{MANAGER}.thief")
    large = [c for c in layout.OUTSIDE if layout.most_pulled(c) == 1]
    try:
        for consumer in large:
            slow.ask(f"{API}.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}", {"batch": 1, "expires": 30 * 10**9})
        slow.ask(f"{API}.STREAM.MSG.GET.KV_policies", {"last_by_subj": "$KV.policies.k"})
        page = {"seq": 1, "next_by_subj": ">", "batch": 256, "max_bytes": 4 * layout.MIB}
        slow.ask(f"{API}.DIRECT.GET.KV_summaries", page, times=2)
        async with asyncio.timeout(WITHIN_S):
            for consumer in large:
                while not (await looks.jetstream.consumer_info(consumer.stream, consumer.name)).num_ack_pending:
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(WITHIN_S):
            received = sum(map(len, await slow.read()))
            while received < 3 * MAX_MESSAGE + LARGEST_POLICY * 99 // 100 + 8 * layout.MIB:
                received += sum(map(len, await slow.read()))
    finally:
        slow.close()
