"""The embedded server: it starts, says why not, comes back after a kill, and never outlives its parent."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

import attestgate
from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError, Entry, Message
from attestgate.bus.auth.credentials import Trust, create, issue
from attestgate.bus.client.nats import connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import EmbeddedServer, die_with_parent, find_binary
from attestgate.schemas.base import Refusal
from tests.support.bus.fixtures import Join
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

ROOT = Path(attestgate.__file__).parents[2]


PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def adopting() -> Iterator[None]:
    """Make this process the one that inherits orphans, so that it can see them end (prctl(2))."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    yield
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 0) == 0


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process has ended, waiting for it (pidfd_open(2)); an adopted one is reaped."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended = bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)
    if ended:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return ended


@pytest.mark.stack
def test_a_child_whose_parent_ended_before_the_kernel_was_told_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=die_with_parent()) as child:
        assert child.wait(timeout=30) == 1


@pytest.mark.stack
async def test_a_busy_port_is_named(tmp_path: Path, trust: Trust) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refusal) as refusal:
            await EmbeddedServer(tmp_path, trust, port=port).start()
    (reason,) = refusal.value.reasons
    assert reason.code == "bus.server"
    assert str(port) in reason.field and "address already in use" in reason.found


async def test_a_missing_binary_is_named(tmp_path: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal) as refusal:
        await EmbeddedServer(tmp_path / "server", trust).start()
    assert refusal_code(refusal) == "bus.server.missing"


def test_the_binary_is_found_in_the_wheel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = find_binary()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_binary().samefile(usual)


@pytest.mark.stack
async def test_it_listens_on_loopback_and_its_files_are_private(server: EmbeddedServer, tmp_path: Path) -> None:
    assert server.url.startswith("nats://127.0.0.1:")
    configuration = tmp_path / "server" / "nats-server.conf"
    assert configuration.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "server").stat().st_mode & 0o777 == 0o700
    addresses = Path(f"/proc/{server.pid}/net/tcp").read_text()
    port = f":{int(server.url.rsplit(':', 1)[1]):04X}"
    listening = [line.split()[1] for line in addresses.splitlines() if port in line and " 0A " in line]
    assert listening == [f"0100007F{port}"]


@pytest.mark.stack
async def test_its_end_is_noticed(server: EmbeddedServer) -> None:
    waiting = asyncio.create_task(server.wait())
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await waiting == -signal.SIGKILL
    await server.stop()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


async def test_no_server_is_a_clear_error(tmp_path: Path, keys: Path) -> None:
    path = tmp_path / "h.creds"
    issue(keys, "host", "h1", path)
    with pytest.raises(BusError, match=r"no connection to nats://127.0.0.1:9"):
        await connect(["nats://127.0.0.1:9"], path, patience_s=0.2)


@pytest.mark.stack
async def test_a_credential_of_another_bus_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    create(tmp_path / "other")
    path = tmp_path / "stranger.creds"
    issue(tmp_path / "other", "manager", "m", path)
    with pytest.raises(BusError, match="rejects the credential"):
        await connect([server.url], path)


@pytest.mark.stack
async def test_everything_resumes_after_a_kill(server: EmbeddedServer, join: Join) -> None:
    """kill -9 and start again: watch, consumer, subscription and publish of the same connections go on."""
    manager, host = await join("manager", "m"), await join("host", "h1")
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await host.listen(subjects.outbound_all("host", "h1"), heard.put)
    bucket = manager.bucket("admissions")
    kept = await bucket.put("kept", b"1")
    await manager.schedule(subjects.deadline("ab" * 16), b"due", at=0)
    changes: Any = bucket.watch()
    deliveries: Any = manager.consume("workers")
    async with asyncio.timeout(30), aclosing(changes), aclosing(deliveries):
        assert [await anext(changes), await anext(changes)] == [Entry("kept", b"1", kept), None]
        fired = await anext(deliveries)
        await fired.done()
        await manager.flush()
        os.kill(server.pid, signal.SIGKILL)
        await server.wait()
        await server.stop()
        stored = asyncio.create_task(host.publish(subjects.inbound("host", "h1", "hello"), b"while it was down"))
        await server.start()
        await stored
        assert await anext(changes) == Entry("kept", b"1", kept)  # shown once more, nothing invented
        later = await bucket.put("later", b"2")
        assert await anext(changes) == Entry("later", b"2", later)
        await manager.publish(subjects.work("test", "ab" * 16, "again"), b"work")
        delivery = await anext(deliveries)
        assert delivery.data == b"work"
        await delivery.done()
        await host.flush()
        await manager.send(subjects.outbound("host", "h1", "challenge"), b"hello again")
        assert (await heard.get()).data == b"hello again"
    assert (manager.connections, host.connections) == (2, 2)


@pytest.mark.stack
async def test_what_was_taken_and_not_acknowledged_comes_again_after_a_kill(server: EmbeddedServer, join: Join) -> None:
    manager = await join("manager", "m")
    await manager.publish(subjects.work("test", "ab" * 16, "x"), b"work")
    deliveries: Any = manager.consume("workers")
    async with asyncio.timeout(30), aclosing(deliveries):
        first = await anext(deliveries)
        os.kill(server.pid, signal.SIGKILL)
        await server.wait()
        await server.stop()
        await server.start()
        await manager.flush()
        await first.again()
        second = await anext(deliveries)
    assert second.data == b"work"  # `attempt` may count from 1 again: the server does not flush it at each delivery


@pytest.mark.stack
async def test_a_worker_that_dies_has_its_message_redelivered(join: Join) -> None:
    """After ack_wait, made short here, with nobody giving it back."""
    manager = await join("manager", "m")
    info = await manager.jetstream.consumer_info("ATTEST_WORK", "workers")
    info.config.ack_wait = 1
    await manager.jetstream.add_consumer("ATTEST_WORK", info.config)
    await manager.publish(subjects.work("test", "ab" * 16, "x"), b"work")
    deliveries: Any = manager.consume("workers")
    async with asyncio.timeout(15), aclosing(deliveries):
        attempts = [(await anext(deliveries)).attempt for _ in range(2)]
    assert attempts == [1, 2]


@pytest.mark.stack
async def test_what_a_worker_did_not_hand_out_goes_to_another(join: Join) -> None:
    one, two = await join("manager", "one"), await join("manager", "two")
    for number in range(8):
        await two.publish(subjects.work("test", "ab" * 16, f"n{number}"), b"%d" % number)
    first: Any = one.consume("workers", batch=8)
    second: Any = two.consume("workers", batch=8)
    had = one.client.stats["in_msgs"]
    async with asyncio.timeout(20):  # of the 30 s after which the server gives back what is lost
        async with aclosing(first):
            taken = await anext(first)
            await taken.done()
            while one.client.stats["in_msgs"] < had + 8:  # what is still in the server as it closes has to wait
                await one.flush()
        async with aclosing(second):
            rest = [(await anext(second)).data for _ in range(7)]
    assert sorted([taken.data, *rest]) == [b"%d" % n for n in range(8)]


@pytest.mark.stack
async def test_setting_up_again_puts_back_what_was_changed(join: Join) -> None:
    manager = await join("manager", "m")
    info = await manager.jetstream.stream_info(layout.HOSTS.name)
    info.config.max_msgs_per_subject = 7
    await manager.jetstream.update_stream(info.config)
    await manager.bucket("sessions").put("kept", b"1")
    await ensure(manager)
    info = await manager.jetstream.stream_info(layout.HOSTS.name)
    assert info.config.max_msgs_per_subject == layout.HOSTS.max_msgs_per_subject
    assert await manager.bucket("sessions").keys() == ["kept"]


@threat(rows.HEADERS_REACH)
@pytest.mark.stack
async def test_what_agents_write_to_has_no_feature_that_reaches_across_subjects(join: Join) -> None:
    manager = await join("manager", "m")
    features = ("allow_rollup_hdrs", "allow_msg_ttl", "allow_msg_schedules", "allow_atomic", "allow_msg_counter")
    for stream in layout.INBOUND:
        config = (await manager.jetstream.stream_info(stream.name)).config
        assert not any(getattr(config, feature) for feature in features)


PARENT = """
    import asyncio, signal, sys
    from pathlib import Path
    from attestgate.bus.auth.credentials import load
    from attestgate.bus.server.embedded import EmbeddedServer

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored

    async def main():
        async with EmbeddedServer(Path(sys.argv[2]), load(Path(sys.argv[1]))) as server:
            print(server.pid, flush=True)
            if sys.argv[3] == "raise":
                raise RuntimeError("a fault of the parent")
            if sys.argv[3] == "wait":
                await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "sent"),
    [
        ("return", None),
        ("raise", None),
        ("wait", signal.SIGINT),
        ("wait", signal.SIGTERM),
        ("wait", signal.SIGKILL),
    ],
)
@pytest.mark.usefixtures("adopting")
@pytest.mark.stack
def test_no_server_outlives_its_parent(tmp_path: Path, keys: Path, how: str, sent: signal.Signals | None) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(keys), str(tmp_path / "server"), how]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if sent is not None:
            parent.send_signal(sent)
        parent.wait(timeout=20)
    assert gone(pid)
