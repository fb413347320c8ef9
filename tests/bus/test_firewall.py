"""What the kernel's rules in front of nats-server let a machine send, and that they leave the others alone."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network

import pytest

from attestgate.bus.server.firewall import CONNECTIONS, TABLE
from tests.support.bus.network import HINT, load, possible, within
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.skipif(not possible(), reason=HINT)]

SERVER, SERVER6 = "127.0.0.1", "fd00:1::1"
THIEF, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
THIEF6, BESIDE6, OTHER6 = "fd00:1::2", "fd00:1::3", "fd00:2::2"
"""Two addresses of one /64, and one of another."""
PORT = 4222
RATE, AT_ONCE = 512 * 1024, 1536 * 1024
"""What firewall.BYTES means: the kernel's bucket of bytes holds a second's worth beside the burst (nft_limit.c)."""
OPENED, OPENED_AT_ONCE = 8, CONNECTIONS
"""Likewise firewall.OPENED; of packets it holds the burst."""
PATIENCE_S = 60.0
SHUT_OUT_S = 3.0
"""Time for two attempts to connect, of which none is answered."""


class Sink:
    """A server that counts what each address sends it, and what connects to it from this network's machines."""

    def __init__(self) -> None:
        self.had: Counter[str] = Counter()
        self._writers: set[asyncio.StreamWriter] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count what one connection sends."""
        self._writers.add(writer)
        with suppress(OSError):
            while data := await reader.read(64 * 1024):
                self.had[writer.get_extra_info("peername")[0]] += len(data)
        self._drop(writer)

    async def connect(self, source: str, to: str = SERVER) -> asyncio.StreamWriter:
        """A connection from one machine. Raises ConnectionRefusedError."""
        _, writer = await asyncio.open_connection(to, PORT, local_addr=(source, 0))
        self._writers.add(writer)
        return writer

    async def connect_many(self, count: int, source: str, to: str = SERVER) -> list[asyncio.StreamWriter]:
        """Several connections that stay."""
        return [await self.connect(source, to) for _ in range(count)]

    async def until_had(self, source: str, size: int) -> None:
        """Wait until so much has come from one machine."""
        async with asyncio.timeout(PATIENCE_S):
            while self.had[source] < size:
                await asyncio.sleep(0.01)

    def close(self) -> None:
        """Drop every connection."""
        for writer in list(self._writers):
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self._writers.discard(writer)


@asynccontextmanager
async def sink(*addresses: str) -> AsyncIterator[Sink]:
    """A server at nats-server's port in a network of its own."""
    found = Sink()
    async with await asyncio.start_server(found.take, addresses or (SERVER,), PORT):
        try:
            yield found
        finally:
            found.close()


@threat(rows.FLOOD)
def test_what_a_machine_sends_is_bounded_and_another_has_a_rate_of_its_own() -> None:
    async def work() -> None:
        load([PORT])
        async with sink() as server:
            begun = time.monotonic()
            for writer in await server.connect_many(8, THIEF):
                writer.write(bytes(4 * AT_ONCE))
            await server.until_had(THIEF, AT_ONCE)
            (await server.connect(OTHER)).write(bytes(AT_ONCE - RATE))
            await server.until_had(OTHER, AT_ONCE - RATE)
            await server.until_had(THIEF, AT_ONCE + 2 * RATE)
            had, took = server.had[THIEF], time.monotonic() - begun
            assert had <= AT_ONCE + RATE * took

    within(work)


@threat(rows.FLOOD)
def test_a_machine_has_so_many_connections_and_another_has_its_own() -> None:
    async def work() -> None:
        load([PORT])
        async with sink() as server:
            held = await server.connect_many(CONNECTIONS, THIEF)
            with pytest.raises(ConnectionRefusedError):
                await server.connect(THIEF)
            await server.connect(OTHER)
            held[0].transport.abort()
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with suppress(ConnectionRefusedError):
                        await server.connect(THIEF)
                        break
                    await asyncio.sleep(0.1)

    within(work)


@threat(rows.FLOOD)
def test_a_machine_opens_so_many_connections_in_a_time() -> None:
    async def work() -> None:
        load([PORT])
        async with sink() as server:
            opened, begun = 0, time.monotonic()

            async def open_and_close() -> None:
                nonlocal opened
                while opened < OPENED_AT_ONCE + 3 * OPENED:
                    (await server.connect(THIEF)).transport.abort()
                    opened += 1

            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(open_and_close() for _ in range(4)))
            assert opened <= OPENED_AT_ONCE + OPENED * (time.monotonic() - begun)

    within(work)


def test_managers_are_not_counted() -> None:
    async def work() -> None:
        load([PORT], [ip_network("127.0.0.3/32"), ip_network("fd00:2::/64")])
        async with sink(SERVER, SERVER6) as server:
            for address, to in ((OTHER, SERVER), (OTHER6, SERVER6)):
                assert len(await server.connect_many(CONNECTIONS + 1, address, to)) == CONNECTIONS + 1
            await server.connect(THIEF)
            listed = ["nft", "list", "set", "inet", TABLE, "sent4"]
            counted = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
            assert THIEF in counted and OTHER not in counted

    within(work, (SERVER6, OTHER6))


def test_whoever_has_one_address_of_an_ipv6_network_has_them_all() -> None:
    async def work() -> None:
        load([PORT])
        async with sink(SERVER6) as server:
            await server.connect_many(CONNECTIONS // 2, THIEF6, SERVER6)
            await server.connect_many(CONNECTIONS - CONNECTIONS // 2, BESIDE6, SERVER6)
            with pytest.raises(ConnectionRefusedError):
                await server.connect(THIEF6, SERVER6)
            await server.connect(OTHER6, SERVER6)

    within(work, (SERVER6, THIEF6, BESIDE6, OTHER6))


def test_when_no_more_machines_can_be_counted_another_one_is_shut_out() -> None:
    async def work() -> None:
        load([PORT], machines=2)
        async with sink() as server:
            first, second = await server.connect(THIEF), await server.connect(OTHER)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SHUT_OUT_S):
                    await server.connect(THIRD)
            for writer, address in ((first, THIEF), (second, OTHER)):
                writer.write(b"still counted")
                await server.until_had(address, 1)

    within(work)


def test_loading_the_rules_again_ends_no_connection() -> None:
    async def work() -> None:
        load([PORT])
        async with sink() as server:
            writer = await server.connect(THIEF)
            load([PORT])
            writer.write(b"still here")
            await server.until_had(THIEF, 1)

    within(work)
