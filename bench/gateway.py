"""Gateway benchmarks, as ratios within one run: python -m bench.gateway [--quick]

Admission: from putting an entry into nginx to the first 200, from removing it to the first 403, with increasing numbers
of admissions, compared with the variant without njs: a map file and a reload. Requests: through the gateway compared
with the same nginx with the same TLS and upstream but without the check. Certificates: how many an issuing CA issues
per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http.client import HTTPConnection, HTTPSConnection
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.compose.nginx import process as rendering
from attestgate.compose.nginx.process import Nginx
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.entries import CertificateEntry, HostEntry
from attestgate.manager.pki.issue import issue
from attestgate.schemas.nginx import NginxConfig
from tests.support.gateway.gate import Client, Gate

CHECK = ("js_access admission.access;", "js_body_filter admission.bound buffer_type=buffer;")
UPSTREAM = """
daemon off; worker_processes 1; pid up.pid; error_log up.log; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 1000000;
    server {{ listen unix:{socket}; location / {{ default_type application/json; return 200 '[{{"id":"s1"}}]'; }} }}
}}
"""


RENDER = rendering.render
Change = Callable[[str], str]


def unchecked(text: str) -> str:
    """A configuration without njs in the request path."""
    for line in CHECK:
        text = text.replace(line, "")
    return text


EMPTY = """
function access(r) { r.variables.attestgate_verdict = 'admitted'; }
function bound(r, data, flags) { r.sendBuffer(data, flags); }
function busy() { return ''; }
function refused() { return ''; }
function uploader() { return ''; }
export default { access, bound, busy, refused, uploader };
"""


def with_empty_script(folder: Path) -> Change:
    """njs in the request path, doing nothing: its cost before the first line of ours."""
    folder.mkdir()
    (folder / "admission.js").write_text(EMPTY)
    for name in ("admin.js", "clock.js", "door.js"):
        shutil.copy(rendering._FILES / name, folder)
    return lambda text: text.replace(f'js_path "{rendering._FILES}"', f'js_path "{folder}"')


class BenchGate(Gate):
    """A gateway in front of an nginx that answers at once; `change` modifies the rendered configuration."""

    def __init__(self, folder: Path, change: Change = str) -> None:
        super().__init__(folder, time.time, zone="256m")
        self.config = self.config.model_copy(update={"controller": folder / "up.sock"})
        self.nginx = Nginx(self.config)
        self.change = change

    def render(self, config: NginxConfig) -> str:
        """The configuration for a connection that never ends."""
        text = RENDER(config).replace("server_tokens off;", "server_tokens off; keepalive_requests 1000000;")
        return self.change(text.replace("keepalive 16;", "keepalive 16; keepalive_requests 1000000;"))

    @asynccontextmanager
    async def up(self) -> AsyncIterator[BenchGate]:
        """Both nginx running."""
        config = self.folder / "up.conf"
        config.write_text(UPSTREAM.format(user=rendering._user(), socket=self.config.controller))
        upstream = await asyncio.create_subprocess_exec(
            str(self.nginx._binary), "-p", str(self.folder), "-e", str(self.folder / "e"), "-c", "up.conf"
        )
        rendering.render = self.render
        try:
            await self.nginx.start()
        finally:
            rendering.render = RENDER
        try:
            yield self
        finally:
            await self.nginx.stop()
            upstream.terminate()
            await upstream.wait()
            for client in self.clients:
                await client.http.aclose()

    def cpu_s(self) -> float:
        """CPU seconds that the workers have used."""
        master = self.nginx._child
        assert master is not None
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        used = (Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in children)
        return sum(int(fields[11]) + int(fields[12]) for fields in used) / os.sysconf("SC_CLK_TCK")


async def admissions(folder: Path, sizes: list[int], times: int) -> None:
    """Admit and withdraw one application among many."""
    print(f"\nadmit -> first 200, withdraw -> first 403 on a kept-alive connection ({times} times), in ms")
    reloads = await reload_times(folder / "reload", sizes, max(times // 20, 5))
    async with BenchGate(folder / "gate").up() as gate, Dictionary(gate.config.admin) as dictionary:
        epoch = (await dictionary.health()).epoch
        client = gate.client()
        await gate.admit(client, lease_s=3000, host_s=3000)
        entry = CertificateEntry.model_validate_json((await gate.contents())[client.key])
        there = 0
        for size in sizes:
            await fill(dictionary, epoch, there, size)
            there = size
            admit, withdraw = await asyncio.to_thread(in_and_out, gate, client, epoch, entry, times)
            print(f"  {size:>7} admissions: admit {spread(admit)}   withdraw {spread(withdraw)}")
            ratio = statistics.median(reloads[size]) / statistics.median(admit)
            print(f"  {'':>7} map and reload: admit {spread(reloads[size])}   = {ratio:.0f} times as long")


class AdminConnection(HTTPConnection):
    """To nginx's admin socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("nginx")
        self._path = path

    def connect(self) -> None:
        """See http.client."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def in_and_out(
    gate: Gate, client: Client, epoch: str, entry: CertificateEntry, times: int
) -> tuple[list[float], list[float]]:
    """Milliseconds from each change to the first answer that shows it; plain blocking clients, which cost least."""
    application = HTTPSConnection("localhost", gate.config.port, context=client.context)
    admin = AdminConnection(gate.config.admin)
    row = {"key": client.key, "since": entry.since, "until": entry.until, "sequence": entry.sequence}
    row["value"] = entry.model_dump_json()
    put = ("PUT", "/entries", json.dumps({"epoch": epoch, "entries": [row]}))
    remove = ("DELETE", "/entries", json.dumps({"epoch": epoch, "keys": [client.key]}))

    def status(connection: HTTPConnection, method: str, path: str, body: str | None = None) -> int:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def taken(change: tuple[str, str, str], code: int) -> float:
        begun = time.perf_counter()
        assert status(admin, *change) == 200
        while status(application, "GET", "/x") != code:
            pass
        return (time.perf_counter() - begun) * 1000

    status(application, "GET", "/x")
    pairs = [(taken(remove, 403), taken(put, 200)) for _ in range(times)]
    application.close()
    admin.close()
    return [admitted for _, admitted in pairs], [withdrawn for withdrawn, _ in pairs]


async def fill(dictionary: Dictionary, epoch: str, there: int, size: int) -> None:
    """Bring the number of entries from `there` to `size`."""
    entries = {f"host.{i:032x}": HostEntry(sequence=1, since=0, until=2**33, host="h1") for i in range(there, size)}
    await dictionary.put(epoch, entries)


async def reload_times(folder: Path, sizes: list[int], times: int) -> dict[int, list[float]]:
    """The same with a stock nginx: a map of serials in a file, and SIGHUP."""
    folder.mkdir()
    listed = folder / "admitted.map"
    listed.write_text("")

    def with_map(text: str) -> str:
        rows = f'map_hash_max_size 262144; map $ssl_client_serial $admitted {{ default 0; include "{listed}"; }}'
        text = unchecked(text).replace("server_tokens off;", f"server_tokens off; {rows}")
        return text.replace("proxy_pass http", "if ($admitted = 0) { return 403; }\n proxy_pass http", 1)

    found = {}
    async with BenchGate(folder, with_map).up() as gate:
        client, master = gate.client(), gate.nginx._child
        assert client.issued is not None and master is not None
        for size in sizes:
            rows = "".join(f'"{i:032X}" 1;\n' for i in range(size))
            taken = []
            for _ in range(times):
                listed.write_text(rows)
                master.send_signal(signal.SIGHUP)
                await until_anew(gate, client, 403)
                begun = time.perf_counter()
                listed.write_text(rows + f'"{client.issued.serial.upper()}" 1;\n')
                master.send_signal(signal.SIGHUP)
                await until_anew(gate, client, 200)
                taken.append((time.perf_counter() - begun) * 1000)
            found[size] = taken
    return found


def fresh(gate: Gate, client: Client) -> httpx.AsyncClient:
    """A new connection."""
    return httpx.AsyncClient(base_url=gate.url, verify=client.context)


async def until_anew(gate: Gate, client: Client, status: int) -> None:
    """Old workers keep their connections: only a new one shows the new map."""
    while True:
        async with fresh(gate, client) as http:
            try:
                if (await http.get("/x")).status_code == status:
                    return
            except httpx.TransportError:
                continue


async def requests(folder: Path, runs: int, seconds: float) -> None:
    """Throughput through the gateway and without the check, in alternation."""
    print(f"\nrequests a second, {CLIENTS} kept-alive connections, one request at a time each ({runs} runs of each)")
    async with AsyncExitStack() as stack:
        gates = {}
        empty = with_empty_script(folder / "script")
        changes: dict[str, Change] = {"through the gate": str, "an empty script": empty, "unchecked": unchecked}
        for name, change in changes.items():
            path = folder / name.split()[0]
            path.mkdir()
            gate = await stack.enter_async_context(BenchGate(path, change).up())
            clients = [gate.client(app=f"a{i}") for i in range(CLIENTS)]
            await gate.admit(*clients, lease_s=3000, host_s=3000)
            gates[name] = gate
        rates: dict[str, list[float]] = {name: [] for name in gates}
        costs: dict[str, list[float]] = {name: [] for name in gates}
        for _ in range(runs):
            for name, gate in gates.items():
                before = gate.cpu_s()
                count = await asyncio.to_thread(load, gate, seconds)
                rates[name].append(count / seconds)
                costs[name].append((gate.cpu_s() - before) / count * 1e6)
        for name in gates:
            print(
                f"  {name:>16}: {spread(rates[name], '/s', 0)}   nginx's CPU {spread(costs[name], ' us', 0)} a request"
            )
        paired = [a / b for a, b in zip(rates["through the gate"], rates["unchecked"], strict=True)]
        cpu = [b / a for a, b in zip(costs["through the gate"], costs["unchecked"], strict=True)]
        print(f"  ratio: {spread(paired)} in requests a second, {spread(cpu)} in requests a CPU second of nginx")


CLIENTS = 4
REQUEST = b"GET /switches HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"


def load(gate: Gate, seconds: float) -> int:
    """Requests answered with 200 by `CLIENTS` connections of two processes."""
    context = get_context("fork")
    queue = context.Queue()
    pems = [str(gate.folder / f"client-{i}.pem") for i in range(CLIENTS)]
    halves = [pems[::2], pems[1::2]]
    root = str(gate.folder / "ca" / "root-ca.pem")
    workers = [context.Process(target=ask, args=(gate.config.port, half, root, seconds, queue)) for half in halves]
    for worker in workers:
        worker.start()
    counts = [queue.get(timeout=seconds + 30) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(counts)


def ask(port: int, pems: list[str], root: str, seconds: float, queue: Any) -> None:
    """One process: its connections in turn, the next request sent while the previous one is answered."""
    connections = []
    for pem in pems:
        context = ssl.create_default_context(cafile=root)
        context.load_cert_chain(pem)
        plain = socket.create_connection(("localhost", port))
        connections.append(context.wrap_socket(plain, server_hostname="localhost"))
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for connection in connections:
            connection.sendall(REQUEST)
        for connection in connections:
            answer = connection.recv(65536)
            while b"\r\n\r\n[" not in answer and b"]" not in answer:
                answer += connection.recv(65536)
            count += answer.startswith(b"HTTP/1.1 200")
    queue.put(count)


def certificates(folder: Path, runs: int) -> None:
    """How many certificates one process issues from requests."""
    gate = Gate(folder / "ca-only", time.time)
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    der, at = request.public_bytes(Encoding.DER), int(time.time())
    rates = []
    for _ in range(runs):
        begun = time.perf_counter()
        for _ in range(300):
            issue(gate.authority, der, host="h1", app="a1", lifetime_s=3600, at=at)
        rates.append(300 / (time.perf_counter() - begun))
    print(f"\ncertificates issued a second, one process: {spread(rates, '/s', 0)}")


def spread(values: list[float], unit: str = "", digits: int = 2) -> str:
    """Median, and the 1st and 99th percentile if there are enough values, else the extremes."""
    ordered = sorted(values)
    low, high = (
        (ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100])
        if len(ordered) >= 100
        else (ordered[0], ordered[-1])
    )
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f}-{high:.{digits}f})"


async def main() -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run fewer and smaller rounds")
    quick = parser.parse_args().quick
    folder = Path(tempfile.mkdtemp(prefix="bench-gateway-"))
    steps: list[Callable[[], Awaitable[None]]] = [
        lambda: requests(folder, 3 if quick else 7, 1.0 if quick else 2.0),
        lambda: admissions(folder, [100, 10_000] if quick else [100, 10_000, 100_000], 50 if quick else 300),
    ]
    try:
        (folder / "gate").mkdir()
        for step in steps:
            await step()
        certificates(folder, 3 if quick else 7)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    asyncio.run(main())
