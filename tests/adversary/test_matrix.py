"""Who may do what on the bus, subject by subject: written down a second time, and tried with each role's credential.

`bus/auth/permissions.py` makes the credentials; this is what they should amount to. A subject, a step, an event, a
stream or a bucket that is new there and has no row here fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from nats.aio.client import Client

from attestgate.bus import layout, subjects
from attestgate.bus.auth.credentials import issue
from attestgate.bus.auth.permissions import API, EDGE_API, ROLES, VIEWER_API
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.event_data import BY_NAME
from tests.support.bus.everything import name_of
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack

ME, OTHER = "me", "other"
SESSION = "ab" * 16
AGENTS = {
    "host": {"hello", "evidence", "key_proof", "recheck_evidence", "recheck_list", "key_delivered", "resume"},
    "app": {"hello", "evidence", "colocation_proof", "recheck_evidence", "resume"},
    "gateway": {"report"},
}
COMMANDS = {"enrol", "revoke", "recheck", "retry", "drop", "put-policy", "try-policy"}
OF_GATEWAYS = {
    "admitted", "withdrawn", "lapsed", "refused", "request-refused", "connections-rejected", "break-glass",
    "reconciled", "nginx-failed", "clock-stepped", "failed", "blocked", "floors-unwritten", "floors-written",
}  # fmt: skip
"""The events that a gateway's credential may publish, of its own."""
PREFIXES = {"IN", "OUT", "OPERATOR", "EVENTS", "WORK", "SCHEDULE", "DUE", "LOG", "COPY", "REPORTS"}
READ = {
    "summaries": {"operator"},
    "admissions": {"operator", "gateway"},
    "enrolment": {"operator"},
    "policies": {"operator"},
    "quarantine": {"operator"},
    "log": {"operator", "viewer"},
    "sessions": set(),
    "collateral": set(),
    "operators": set(),
}
"""Who, besides managers, reads a bucket itself, a message at a time; all but the log's tree can be watched as well."""
WATCHED_COPIES = {"summaries", "admissions"}
"""Buckets that viewers read in copies, and whose changes they hear."""
PAGED = {
    "ATTEST_EVENTS": {"operator"},
    "ATTEST_ALARMS": {"operator"},
    "ATTEST_LOG": {"operator", "viewer"},
}
"""Who, besides managers, reads a stream itself, one message at a time."""
COPIES = {"ATTEST_EVENTS", "ATTEST_ALARMS", "KV_summaries", "KV_admissions"}
"""Streams that viewers have copies of, in their own account."""
WAITING = {
    "ATTEST_HOST", "ATTEST_LISTS", "ATTEST_APP", "ATTEST_GATEWAY", "ATTEST_OPERATOR", "ATTEST_POLICY", "ATTEST_WORK",
}  # fmt: skip
"""The streams that nobody reads but by a manager's consumer."""
CHANGES = ("STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT", "STREAM.RESTORE")
"""What nobody may do to a stream."""


@dataclass(frozen=True)
class Row:
    """One subject, a verb, and the roles that may."""

    verb: Literal["publish", "subscribe"]
    subject: str
    roles: frozenset[str]


def row(verb: Literal["publish", "subscribe"], subject: str, *roles: str) -> Row:
    return Row(verb, subject, frozenset(roles))


def said() -> Iterator[Row]:
    """Messages from outside: each sender its own, and only managers are told, by their consumers."""
    for role, steps in AGENTS.items():
        for who in (ME, OTHER):
            own = [role] if who == ME else []
            for step in steps:
                yield row("publish", f"attest.v1.in.{role}.{name_of(role, who)}.{step}", *own)
            for step in ("x", "hello.x"):
                yield row("publish", f"attest.v1.in.{role}.{name_of(role, who)}.{step}")
            heard = own if role != "gateway" else []
            yield row("subscribe", f"attest.v1.out.{role}.{name_of(role, who)}.>", *heard)
            yield row("publish", f"attest.v1.out.{role}.{name_of(role, who)}.x", "manager")
        yield row("subscribe", f"attest.v1.in.{role}.>")
    yield row("subscribe", "attest.v1.in.gateway.*.report", "operator")
    for who in (ME, OTHER):
        for command in COMMANDS:
            yield row("publish", f"attest.v1.op.{who}.{command}", *(["operator"] if who == ME else []))
        yield row("publish", f"attest.v1.op.{who}.x")
    yield row("subscribe", "attest.v1.op.>")


def told() -> Iterator[Row]:
    """Events: the managers', and a gateway's own."""
    yield row("subscribe", "attest.v1.events.>", "operator", "viewer")
    for kind, what in BY_NAME:
        for who in (ME, OTHER):
            gateway = kind == "gateway" and who == ME and what in OF_GATEWAYS
            yield row(
                "publish", f"attest.v1.events.{kind}.{name_of(kind, who)}.{what}", "manager", *(["gateway"] * gateway)
            )


def own() -> Iterator[Row]:
    """What managers say to each other."""
    yield row("publish", f"attest.v1.work.host.{SESSION}.x", "manager")
    yield row("publish", f"attest.v1.schedule.{SESSION}", "manager")
    yield row("publish", f"attest.v1.due.{SESSION}")
    yield row("publish", f"attest.v1.log.host.me.{SESSION}", "manager")
    for prefix in ("work", "schedule", "due", "log", "copy", "x"):
        yield row("subscribe", f"attest.v1.{prefix}.>")
    for stream in layout.COPIED:
        yield row("publish", f"attest.v1.copy.{stream}")


def kept() -> Iterator[Row]:
    """Buckets and streams, and the calls by which they are read and changed. Viewers' own are copies."""
    for bucket, readers in READ.items():
        watchers = (readers | {"viewer"} if bucket in WATCHED_COPIES else readers) if bucket != "log" else set()
        yield row("publish", f"$KV.{bucket}.key", "manager")
        yield row("subscribe", f"$KV.{bucket}.>", "manager", *watchers)
        yield row("publish", f"{EDGE_API}.STREAM.MSG.GET.KV_{bucket}", *readers)
    for stream, readers in PAGED.items():
        yield row("publish", f"{EDGE_API}.STREAM.MSG.GET.{stream}", *readers)
    for stream in (*PAGED, *(f"KV_{bucket}" for bucket in READ)):
        yield row("publish", f"{EDGE_API}.DIRECT.GET.{stream}")
        yield row("publish", f"{EDGE_API}.DIRECT.GET.{stream}.key", *(["gateway"] if stream == "KV_admissions" else []))
        yield row("publish", f"{API}.DIRECT.GET.{stream}", "manager")
        yield row("publish", f"{API}.DIRECT.GET.{stream}.key", *(["manager"] if stream.startswith("KV_") else []))
        yield row("publish", f"{API}.STREAM.MSG.GET.{stream}", *copy_or_original(stream))
    for stream in WAITING:
        for call in ("STREAM.MSG.GET", "DIRECT.GET"):
            yield row("publish", f"{EDGE_API}.{call}.{stream}")
    for stream in (*PAGED, *WAITING, *(f"KV_{bucket}" for bucket in READ)):
        seen = ["viewer"] if not stream.startswith("KV_") or stream in ("KV_summaries", "KV_admissions") else []
        yield row("publish", f"{EDGE_API}.STREAM.INFO.{stream}", *seen)
        for call in CHANGES:
            yield row("publish", f"{EDGE_API}.{call}.{stream}")
            yield row("publish", f"{API}.{call}.{stream}")
        for call in ("STREAM.CREATE", "STREAM.UPDATE"):
            yield row("publish", f"{EDGE_API}.{call}.{stream}")
            yield row("publish", f"{API}.{call}.{stream}", "manager")
        copied = ["viewer"] if stream in layout.COPIED else []
        yield row("publish", f"{EDGE_API}.CONSUMER.CREATE.{stream}.mine")
        yield row("publish", f"{API}.CONSUMER.CREATE.{stream}.mine", *copied)
        yield row("publish", f"{API}.CONSUMER.DURABLE.CREATE.{stream}.mine")
    for consumer in layout.CONSUMERS.values():
        place = f"{consumer.stream}.{consumer.name}"
        yield row("publish", f"{EDGE_API}.CONSUMER.INFO.{place}", "viewer")
        yield row("publish", f"{EDGE_API}.CONSUMER.MSG.NEXT.{place}")
        yield row("publish", f"{API}.CONSUMER.MSG.NEXT.{place}", "manager")
        yield row("publish", f"$JS.ACK.{place}.1.1.1.1.0", "manager")
        for prefix in (API, EDGE_API):
            yield row("publish", f"{prefix}.CONSUMER.DELETE.{place}")
    for call in ("STREAM.NAMES", "STREAM.LIST", "INFO"):
        yield row("publish", f"{EDGE_API}.{call}", "viewer")
    yield row("publish", f"{VIEWER_API}.STREAM.DELETE.KV_summaries")
    for subject in ("$SYS.>", ">", "_INBOX.>", "$JS.>", "$KV.>"):
        yield row("subscribe", subject)


def copy_or_original(stream: str) -> list[str]:
    """Who may read a stream of this name in its own account: managers the buckets, viewers the copies."""
    managers = ["manager"] if stream.startswith("KV_") else []
    return [*managers, *(["viewer"] if stream in COPIES else [])]


ROWS = list(dict.fromkeys([*said(), *told(), *own(), *kept()]))


def test_every_subject_has_a_row() -> None:
    assert {name for name, value in vars(subjects).items() if str(value).startswith(f"{subjects.ROOT}.")} == PREFIXES
    assert {role: set(steps) for role, steps in subjects.STEPS.items()} == AGENTS
    assert {*subjects.COMMANDS, *subjects.POLICY_COMMANDS} == COMMANDS
    assert set(layout.BUCKETS) == set(READ)
    assert set(layout.STREAMS) == {*PAGED, *WAITING}
    assert set(layout.COPIED) == COPIES
    assert {role for role in ROLES if role not in AGENTS} == {"manager", "operator", "viewer"}


@threat(rows.CREDENTIAL_OTHERS, rows.CREDENTIAL_MANAGER, rows.VIEWER_READS)
@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_what_its_rows_say_and_nothing_else(
    role: str, server: EmbeddedServer, keys: Path, tmp_path: Path
) -> None:
    issue(keys, role, name_of(role, ME), tmp_path / "creds")
    refused: set[tuple[str, str]] = set()

    async def problem(error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text:
            refused.add(("publish" if "for publish" in text else "subscribe", text.split('"')[1]))

    client = Client()
    inbox = f"_INBOX.{role}.{name_of(role, ME)}"
    await client.connect(server.url, user_credentials=str(tmp_path / "creds"), error_cb=problem, inbox_prefix=inbox)
    try:
        for one in ROWS:
            if one.verb == "publish":
                # By this header a stream that would take it rejects it, once the server has let it pass.
                await client.publish(one.subject, b"", headers={"Nats-Expected-Stream": "none"})
            else:
                await (await client.subscribe(one.subject)).unsubscribe()
        for _ in range(2):  # a refusal comes before the answer to the second
            await client.flush()
    finally:
        await client.close()
    wrong = [one for one in ROWS if ((one.verb, one.subject.lower()) not in refused) is not (role in one.roles)]
    assert not wrong, [f"{role} {one.verb} {one.subject}" for one in wrong]
