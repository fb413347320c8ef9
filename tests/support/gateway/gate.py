"""A gateway to test against: a CA, the real nginx, an upstream that says what reached it, and a bus made of lists."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tenacity import AsyncRetrying, retry_if_not_result, stop_after_delay, wait_fixed

from attestgate.bus.api import BusError, Entry, Message
from attestgate.bus.layout import BUCKETS
from attestgate.compose.nginx.process import Nginx, free_port
from attestgate.compose.sdn.controller import serve
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.entries import CertificateEntry, HostEntry
from attestgate.manager.pki.authority import Authority, create_ca, load_authority
from attestgate.manager.pki.issue import IssuedCertificate, issue, issue_server
from attestgate.schemas.admission import ALL, HostLease, Lease, Tenure, Withdrawal
from attestgate.schemas.nginx import NginxConfig
from tests.support.pki import PASSPHRASE

HOST_SESSION = "0a" * 16
APP_SESSION = "0b" * 16
T = TypeVar("T")


class Upstream:
    """The guarded side: keeps every request that reached it, and streams until told to stop."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.more = asyncio.Event()
        self.application = Starlette(
            routes=[
                Route("/stream", self._stream),
                Route("/{path:path}", self._echo, methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )

    async def _echo(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append(request)
        return JSONResponse({"headers": request.headers.items(), "body": body.decode()})

    async def _stream(self, request: Request) -> Response:
        self.requests.append(request)

        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"piece\n"
                await self.more.wait()
                self.more.clear()

        return StreamingResponse(pieces())


class Client:
    """An application's end: a key, its certificate, and a client that keeps one connection."""

    def __init__(
        self, gate: Gate, chain: str, key: ec.EllipticCurvePrivateKey, issued: IssuedCertificate | None = None
    ) -> None:
        self.issued = issued
        path = gate.folder / f"client-{len(gate.clients)}.pem"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        path.write_text(pem + chain)
        self.context = gate.context()
        self.context.load_cert_chain(path)
        self.http = httpx.AsyncClient(base_url=gate.url, verify=self.context, timeout=20)

    @property
    def key(self) -> str:
        assert self.issued is not None
        return f"cert.{self.issued.serial}"


NO_RATE = {"connection_rate_per_address": 100_000, "connection_rate": 100_000}
"""All clients of a test have one address, and a refusal ends its connection."""


class Gate:
    """nginx with its PKI and upstream. Times are real ones: nginx has only its own clock. No rates, unless given."""

    def __init__(self, folder: Path, now: Callable[[], float], **config: Any) -> None:
        self.folder = folder
        self.now = now
        create_ca(folder / "ca", "sdn.example.org", PASSPHRASE, int(now()))
        self.authority = load_authority(folder / "ca", PASSPHRASE)
        server = issue_server(self.authority, names=["localhost"], lifetime_s=3600, at=int(now()))
        (folder / "server.pem").write_text(server.chain)
        (folder / "server.key").write_bytes(server.key.reveal())
        self.config = NginxConfig(
            folder=folder / "n",
            port=free_port(),
            certificate=folder / "server.pem",
            key=folder / "server.key",
            client_ca=folder / "ca" / "client-ca.pem",
            controller=folder / "up.sock",
            **NO_RATE | config,
        )
        self.nginx = Nginx(self.config)
        self.upstream = Upstream()
        self.clients: list[Client] = []

    @property
    def url(self) -> str:
        return f"https://localhost:{self.config.port}"

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "ca" / "root-ca.pem"))

    def client(self, authority: Authority | None = None, *, at: int | None = None, app: str = "a1") -> Client:
        """A new application with a certificate of this CA, or of another."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
        issued = issue(
            authority or self.authority,
            request.public_bytes(Encoding.DER),
            host="h1",
            app=app,
            lifetime_s=600,
            at=int(self.now()) if at is None else at,
        )
        return self.with_certificate(issued.chain, key, issued)

    def with_certificate(
        self, chain: str, key: ec.EllipticCurvePrivateKey, issued: IssuedCertificate | None = None
    ) -> Client:
        client = Client(self, chain, key, issued)
        self.clients.append(client)
        return client

    async def admit(
        self,
        *clients: Client,
        lease_s: int = 60,
        host_s: int = 60,
        allow: tuple[str, ...] = (ALL,),
        sequence: int = 1,
    ) -> None:
        """Put clients and their host session into the dictionary, as the worker does."""
        now = int(self.now())
        until = now + lease_s
        entries: dict[str, CertificateEntry | HostEntry] = {
            client.key: CertificateEntry(
                sequence=sequence,
                since=now,
                until=until,
                sha256=client.issued.sha256,
                identity=client.issued.identity,
                host_key=f"host.{HOST_SESSION}",
                integrity="unanchored",
                marks="simulated",
                allow=list(allow),
            )
            for client in clients
            if client.issued
        }
        entries[f"host.{HOST_SESSION}"] = HostEntry(sequence=1, since=now, until=now + host_s, host="h1")
        async with Dictionary(self.config.admin) as dictionary:
            await dictionary.put((await dictionary.health()).epoch, entries)

    async def withdraw(self, *keys: str) -> None:
        async with Dictionary(self.config.admin) as dictionary:
            await dictionary.remove((await dictionary.health()).epoch, list(keys))

    async def contents(self) -> dict[str, str]:
        async with Dictionary(self.config.admin) as dictionary:
            return (await dictionary.contents()).entries


@asynccontextmanager
async def running(gate: Gate) -> AsyncIterator[Gate]:
    """nginx and upstream up; both gone afterwards, with every client's connection."""
    async with AsyncExitStack() as stack:
        serving = asyncio.create_task(serve(gate.config.controller, gate.upstream.application))  # type: ignore[arg-type]
        stack.push_async_callback(_ended, serving)
        await stack.enter_async_context(gate.nginx)
        try:
            yield gate
        finally:
            gate.upstream.more.set()
            for client in gate.clients:
                await client.http.aclose()


async def until(ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """Ask again and again until the answer is right; 15 s at most."""
    retrying = AsyncRetrying(
        retry=retry_if_not_result(holds), wait=wait_fixed(0.02), stop=stop_after_delay(15), reraise=True
    )
    return await retrying(ask)


async def logged(gate: Gate, count: int) -> list[dict[str, str]]:
    """The access log once it has that many lines.

    nginx writes a line after its answer, and each of its processes on its own: what came over two connections stands in
    either order.
    """

    async def lines() -> list[dict[str, str]]:
        return [json.loads(line) for line in (gate.config.folder / "access.log").read_text().splitlines()]

    return await until(lines, lambda found: len(found) >= count)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def lease(
    client: Client, at: int, *, lease_s: int = 300, sequence: int = 1, gateways: str = "sdn", **more: Any
) -> Lease:
    assert client.issued is not None
    values: dict[str, Any] = {
        "gateways": gateways,
        "serial": client.issued.serial,
        "certificate": client.issued.sha256,
        "identity": client.issued.identity,
        "app": client.issued.identity.rpartition("/")[2],
        "host": "h1",
        "app_session": APP_SESSION,
        "host_session": HOST_SESSION,
        "issued_at": at,
        "expires_at": at + lease_s,
        "sequence": sequence,
        "integrity": "unanchored",
        "simulated": True,
        "observe_only": False,
        "allow": [ALL],
        "rank": 1,
        "enrolled": 1,
        "policy": 1,
    }
    return Lease(**values | more)


def host_lease(at: int, *, lease_s: int = 300, sequence: int = 1, **more: Any) -> HostLease:
    values: dict[str, Any] = {"host": "h1", "host_session": HOST_SESSION, "rank": 1, "enrolled": 1, "policy": 1}
    return HostLease(issued_at=at, expires_at=at + lease_s, sequence=sequence, **values | more)


def withdrawal(
    key: str,
    at: int,
    *,
    left_s: int = 300,
    sequence: int = 2,
    reason: str = "app.revoked",
    ends: Tenure | None = None,
) -> Withdrawal:
    """The end of a key's lease, which had so long to run."""
    return Withdrawal(key=key, issued_at=at, until=at + left_s, sequence=sequence, reason=reason, ends=ends)


@dataclass
class FakeSubscription:
    """A subscription of `FakeBus`."""

    end: Callable[[], None]

    async def close(self) -> None:
        self.end()


class FakeBus:
    """One bucket and a list of what was published. `down` makes everything fail as a lost server does."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.published: list[tuple[str, bytes]] = []
        self.down = False
        self.heard = asyncio.Event()
        self.slow = False
        """Whether a watch says nothing of changes: what it reads by waits behind everybody else's calls."""
        self._watchers: list[asyncio.Queue[Entry | BusError]] = []
        self._listeners: set[Callable[[Message], Awaitable[None]]] = set()

    def bucket(self, name: str) -> FakeBus:
        assert name == "admissions"
        return self

    async def put(self, key: str, value: bytes) -> int:
        self.values[key] = value
        for watcher in self._watchers if not self.slow else ():
            watcher.put_nowait(Entry(key, value, 1))
        await self.deliver(key, value)
        return 1

    async def deliver(self, key: str, value: bytes) -> None:
        """Send a message on a key's subject, or on what is none, whatever is stored."""
        for hear in list(self._listeners):
            await hear(Message(BUCKETS["admissions"].subject(key), value))

    async def get(self, key: str) -> Entry | None:
        BUCKETS["admissions"].key_subject(key)  # refuses an invalid key
        return Entry(key, self.values[key], 1) if key in self.values else None

    async def listen(self, subject: str, handler: Callable[[Message], Awaitable[None]]) -> FakeSubscription:
        assert subject == BUCKETS["admissions"].subject(">")
        self._listeners.add(handler)
        return FakeSubscription(lambda: self._listeners.discard(handler))

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)
        for watcher in self._watchers:
            watcher.put_nowait(Entry(key, None, 1))

    def waiting(self) -> bool:
        """Whether a watcher has yet to take something."""
        return any(not watcher.empty() for watcher in self._watchers)

    def break_watches(self) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(BusError("connection lost"))
        self._watchers.clear()
        self._listeners.clear()

    async def watch(self, pattern: str = ">") -> AsyncIterator[Entry | None]:
        assert pattern == ">"
        if self.down:
            raise BusError("not connected")
        changes: asyncio.Queue[Entry | BusError] = asyncio.Queue()
        self._watchers.append(changes)
        for key, value in list(self.values.items()):
            yield Entry(key, value, 1)
        yield None
        while True:
            change = await changes.get()
            if isinstance(change, BusError):
                raise change
            yield change

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: object = None
    ) -> None:
        assert message_id is not None and headers is None
        if self.down:
            raise BusError("not connected")
        self.published.append((subject, data))
        self.heard.set()
