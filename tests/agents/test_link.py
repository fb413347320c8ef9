"""The agent's side of a session: what it believes, what it says again, and that it stops when told."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.agent.link import INBOX, INBOX_BYTES, AgentSession, Link, SessionOver
from attestgate.bus.api import BusError, Message
from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.channel import Channel
from attestgate.bus.memory.server import MemoryBus, MemoryServer
from attestgate.manager.sessions.handshake import session_id
from attestgate.schemas.base import Reason, Secret, pack
from attestgate.schemas.binding import PROTOCOL, Role, hello_hash
from attestgate.schemas.limits import OUTBOUND
from attestgate.schemas.messages import CHALLENGE, GRANT, REFUSED, AppHello, Challenge, Refused
from attestgate.schemas.signing import Purpose, Signer, TrustedKeys
from tests.support.threats import rows, threat

MANAGER = Signer("test.example", Ed25519PrivateKey.generate())
STRANGER = Signer("test.example", Ed25519PrivateKey.generate())
MANAGERS = TrustedKeys("test.example", {"manager": {MANAGER.public}})
HELLO = AppHello(version=PROTOCOL, app="a1", host="h1", random=bytes(32), agent_version="x")
REASON = Reason(code="x", field="x", expected="x", found="x", action="x")


async def agent(bus: MemoryBus, retry_s: float = 0.01) -> AgentSession:
    """An agent's session before its hello."""
    link = Link(bus, "app", "a1", "h1")
    await link.listen()
    return AgentSession(link, MANAGERS, ["x25519"], retry_s)


async def granted(bus: MemoryBus, retry_s: float = 0.001) -> tuple[AgentSession, Channel]:
    """An agent's session as after its grant, and the manager's end of its channel."""
    session = await agent(bus, retry_s)
    session.session = "ab" * 16
    start = partial(Channel.start, session.session, Secret(bytes(32)), bytes(64))
    session._channel = start("up")
    return session, start("down")


def challenge(**changes: Any) -> Challenge:
    fields: dict[str, Any] = {
        "session": session_id("app", "a1", pack(HELLO)),
        "role": "app",
        "hello": hello_hash(pack(HELLO)),
        "nonce": bytes(32),
        "issued_at": int(time.time()),
        "expires_at": int(time.time()) + 10,
        "session_key": envelope.generate("x25519")[1],
        "suite": "x25519",
        "wanted": ["sgx"],
    }
    return Challenge(**fields | changes)


async def answer(server: MemoryServer, *messages: tuple[str, bytes]) -> None:
    """What the bus delivers once the hello is there."""
    while not server.stored("ATTEST_APP"):
        await asyncio.sleep(0)
    for step, data in messages:
        await server.connect().send(subjects.outbound("app", "h1.a1", step), data)


def signed(purpose: Purpose[Any], model: Any, key: Signer = MANAGER, place: str = "app/h1.a1") -> bytes:
    return pack(key.sign(purpose, place, model))


async def test_a_challenge_to_this_hello_is_taken() -> None:
    server = MemoryServer()
    session = await agent(server.connect())
    _, got = await asyncio.gather(
        answer(server, ("challenge", signed(CHALLENGE, challenge()))), session.open(HELLO, 5.0)
    )
    assert got.suite == session.suite == "x25519"
    assert len(session.transcript) == 64


IGNORED: list[tuple[str, bytes]] = [
    ("challenge", b"junk"),
    ("challenge", signed(CHALLENGE, challenge(), STRANGER)),
    ("challenge", signed(GRANT, challenge())),
    ("challenge", signed(CHALLENGE, challenge(), place="app/h1.a2")),
    ("challenge", signed(CHALLENGE, challenge(), Signer("other.example", MANAGER.key))),
    ("challenge", signed(CHALLENGE, challenge(hello=bytes(64)))),
    ("challenge", signed(CHALLENGE, challenge(role="host"))),
    ("challenge", signed(CHALLENGE, challenge(suite="mlkem768-x25519"))),
    ("challenge", signed(CHALLENGE, challenge(suite="none"))),
    ("grant", signed(CHALLENGE, challenge())),
    ("refused", b"junk"),
    ("refused", signed(REFUSED, Refused(session="ab" * 16, hello=bytes(64), step="x", reasons=[REASON]))),
    (
        "refused",
        signed(
            REFUSED,
            Refused(session="ab" * 16, hello=hello_hash(pack(HELLO)), step="x", reasons=[REASON]),
            STRANGER,
        ),
    ),
    ("ended", b"junk"),
]


@threat(rows.MESSAGE_FORGED, rows.AGENT_MISLED)
@pytest.mark.parametrize(("step", "data"), IGNORED)
async def test_what_is_not_this_managers_to_this_hello_is_ignored(step: str, data: bytes) -> None:
    server = MemoryServer()
    session = await agent(server.connect())
    honest = ("challenge", signed(CHALLENGE, challenge()))
    _, got = await asyncio.gather(answer(server, (step, data), honest), session.open(HELLO, 5.0))
    assert got.hello == hello_hash(pack(HELLO))


async def test_a_signed_refusal_of_this_hello_ends_it_with_its_reasons() -> None:
    server = MemoryServer()
    session = await agent(server.connect())
    refusal = Refused(session="ab" * 16, hello=hello_hash(pack(HELLO)), step="hello", reasons=[REASON])
    with pytest.raises(SessionOver) as over:
        await asyncio.gather(answer(server, ("refused", signed(REFUSED, refusal))), session.open(HELLO, 5.0))
    assert over.value.reasons == [REASON]


async def test_a_silent_manager_is_given_up() -> None:
    session = await agent(MemoryServer().connect())
    with pytest.raises(SessionOver, match=r"manager\.silent"):
        await session.open(HELLO, 0.02)


@threat(rows.AGENT_MISLED)
async def test_a_flood_pushes_out_its_own_oldest_and_no_memory_grows() -> None:
    server = MemoryServer()
    link = Link(server.connect(), "app", "a1", "h1")
    await link.listen()
    for number in range(INBOX + 10):
        await server.connect().send(subjects.outbound("app", "h1.a1", "ready"), b"%d" % number)
    await asyncio.sleep(0.01)
    assert await link.next(1.0) == ("ready", b"10")
    assert link.dropped == 10


@threat(rows.AGENT_MISLED)
async def test_what_waits_is_bounded_in_bytes_too() -> None:
    server = MemoryServer()
    link = Link(server.connect(), "app", "a1", "h1")
    await link.listen()
    longest = OUTBOUND["app", "certificate"]
    fitting = INBOX_BYTES // longest
    for number in range(fitting + 3):
        await server.connect().send(subjects.outbound("app", "h1.a1", "certificate"), bytes([number]) * longest)
    await asyncio.sleep(0.01)
    taken = [await link.next(0.0) for _ in range(fitting)]
    assert [data[0] for _, data in filter(None, taken)] == [*range(3, fitting + 3)]
    assert await link.next(0.0) is None
    assert link.dropped == 3


@pytest.mark.parametrize("role", ["host", "app"])
async def test_no_step_is_kept_that_is_longer_than_its_largest_message_or_unknown(role: Role) -> None:
    server = MemoryServer()
    link = Link(server.connect(), role, "a1", "h1" if role == "app" else None)
    await link.listen()
    steps = {step: size for (whose, step), size in OUTBOUND.items() if whose == role}
    for step, size in {**steps, "unheard-of": -1}.items():
        await server.connect().send(subjects.outbound(role, link.name, step), bytes(size + 1))
    for step, size in steps.items():
        await server.connect().send(subjects.outbound(role, link.name, step), bytes(size))
    await asyncio.sleep(0.01)
    for step, size in steps.items():
        assert await link.next(0.0) == (step, bytes(size))
    assert await link.next(0.0) is None
    assert link.dropped == len(steps) + 1


async def test_an_agent_stops_when_told_even_if_a_message_comes_at_that_moment() -> None:
    """`asyncio.wait_for` of Python 3.11 returns the message and forgets the cancellation."""
    link = Link(MemoryServer().connect(), "app", "a1", "h1")
    for turns in range(4):
        waiting = asyncio.create_task(link.next(60.0))
        await asyncio.sleep(0.001)
        await link._take(Message(subjects.outbound("app", "h1.a1", "ready"), b"", {}))
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.done():
            continue
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


class Busy(MemoryBus):
    """A bus that takes nothing for a while."""

    refuses = 0

    async def publish(self, subject: str, data: bytes, **more: Any) -> None:
        if self.refuses:
            self.refuses -= 1
            raise BusError("busy")
        await super().publish(subject, data, **more)


async def test_what_a_busy_bus_does_not_take_is_said_later_in_order() -> None:
    server = MemoryServer()
    bus = Busy(server)
    session, manager = await granted(bus)
    bus.refuses = 1
    await session.say("recheck_evidence", HELLO)
    assert server.stored("ATTEST_APP") == []
    await session.say("recheck_evidence", HELLO)
    for message in server.stored("ATTEST_APP"):
        manager, _ = manager.open("recheck_evidence", message.data)
    assert manager.opened == 2


async def test_what_was_not_heard_is_said_again_byte_for_byte_and_what_was_heard_is_not() -> None:
    server = MemoryServer()
    bus = server.connect()
    session, manager = await granted(bus)
    await session.say("recheck_evidence", HELLO)
    await session.say("recheck_evidence", HELLO)
    first, second = (message.data for message in server.stored("ATTEST_APP"))
    manager, _ = manager.open("recheck_evidence", first)
    manager, data = manager.seal("ready", b"x")
    await asyncio.sleep(0.002)
    await bus.send(subjects.outbound("app", "h1.a1", "ready"), data)
    assert await session.hear(5.0) == ("ready", b"x")
    assert [message.data for message in server.stored("ATTEST_APP")] == [first, second, second]


async def test_a_channel_that_does_not_fit_any_more_makes_no_storm() -> None:
    """Messages from the future make the agent ask once in a while, not once each."""
    server = MemoryServer()
    bus = server.connect()
    session, manager = await granted(bus, 10.0)
    manager, _ = manager.seal("ready", b"lost")
    for _ in range(20):
        manager, data = manager.seal("ready", b"x")
        await bus.send(subjects.outbound("app", "h1.a1", "ready"), data)
    assert await session.hear(0.05) is None
    assert len(server.stored("ATTEST_APP")) == 1
