"""The real nginx: who passes and who does not, and that nothing leads around the dictionary."""

import asyncio
import json
import socket
import ssl
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestgate.manager.gateway.dictionary import MAX_BODY, Dictionary, NginxError, OtherEpoch, ZoneFull
from attestgate.manager.gateway.entries import CertificateEntry, HostEntry
from attestgate.manager.pki.authority import create_ca, load_authority
from attestgate.schemas.nginx import NginxConfig
from tests.support.gateway.gate import HOST_SESSION, Client, Gate, logged, running, until
from tests.support.pki import PASSPHRASE
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack
HOST = f"host.{HOST_SESSION}"


def is_refusal(response: httpx.Response) -> bool:
    """A stranger gets 403 and learns nothing."""
    assert response.status_code == 403, response.text
    assert response.content == b"refused\n"
    assert "1." not in response.headers["server"]
    return True


async def verdicts(gate: Gate, count: int) -> list[str]:
    return [line["verdict"] for line in await logged(gate, count)]


@threat(rows.LIST_UNANCHORED)
async def test_an_admitted_application_passes_and_is_named_upstream(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)
    response = await client.http.post("/x", content=b"hello", headers={"Content-Type": "text/plain"})
    assert response.status_code == 200
    assert response.json()["body"] == "hello"
    headers = dict(response.json()["headers"])
    assert client.issued is not None
    leaf = x509.load_pem_x509_certificate(client.issued.chain.encode())
    assert headers["x-attestgate-identity"] == client.issued.identity
    assert headers["x-attestgate-integrity"] == "unanchored"
    assert headers["x-attestgate-marks"] == "simulated"
    assert headers["content-type"] == "text/plain"
    # RFC 9440: a byte sequence of RFC 8941 with the DER
    value = headers["client-cert"]
    assert value.startswith(":") and value.endswith(":")
    assert ssl.PEM_cert_to_DER_cert(
        f"-----BEGIN CERTIFICATE-----\n{value[1:-1]}\n-----END CERTIFICATE-----"
    ) == leaf.public_bytes(Encoding.DER)
    (line,) = await logged(gate, 1)
    assert line["identity"] == client.issued.identity
    assert line["verdict"] == "admitted"


@threat(rows.KEY_CA_CLIENT, rows.KEY_CA_SERVER, rows.NO_CERTIFICATE)
async def test_default_is_deny(gate: Gate) -> None:
    client = gate.client()
    assert is_refusal(await client.http.get("/x"))
    await gate.withdraw(HOST)
    assert gate.upstream.requests == []
    assert await verdicts(gate, 1) == ["not admitted"]


@threat(rows.NO_CERTIFICATE)
async def test_no_certificate(gate: Gate) -> None:
    async with httpx.AsyncClient(verify=gate.context()) as http:
        assert is_refusal(await http.get(gate.url))
        assert is_refusal(await http.post(gate.url, content=b"x" * 1000))
    assert gate.upstream.requests == []


@threat(rows.CONNECTION_OUTLIVES)
async def test_a_withdrawal_works_on_the_open_connection(gate: Gate) -> None:
    client, other = gate.client(), gate.client(app="a2")
    await gate.admit(client, other)
    before = await client.http.get("/x")
    assert (await other.http.get("/x")).status_code == 200
    await gate.withdraw(client.key)
    after = await client.http.get("/x")
    assert before.status_code == 200
    assert is_refusal(after)
    assert after.extensions["network_stream"] is before.extensions["network_stream"]
    assert (await other.http.get("/x")).status_code == 200


async def test_losing_a_host_is_one_removal(gate: Gate) -> None:
    clients = [gate.client(app=f"a{i}") for i in range(3)]
    await gate.admit(*clients)
    for client in clients:
        assert (await client.http.get("/x")).status_code == 200
    assert await verdicts(gate, 3) == ["admitted"] * 3
    await gate.withdraw(HOST)
    for client in clients:
        assert is_refusal(await client.http.get("/x"))
    assert (await verdicts(gate, 6))[-3:] == ["host not trusted"] * 3


@threat(rows.WITHDRAWAL_WITHHELD)
async def test_a_lease_ends_by_itself(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client, lease_s=1)
    await until(gate.contents, lambda contents: client.key not in contents)
    assert is_refusal(await client.http.get("/x"))
    assert HOST in await gate.contents()


def signed_by(gate: Gate, *, serial: int, start: int, end: int, usage: x509.ObjectIdentifier) -> Client:
    """A certificate of our own CA with chosen serial, life and purpose."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(gate.authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now + timedelta(seconds=start))
        .not_valid_after(now + timedelta(seconds=end))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(gate.authority.key, SHA256())
    )
    issuing = gate.authority.certificate.public_bytes(Encoding.PEM).decode()
    return gate.with_certificate(certificate.public_bytes(Encoding.PEM).decode() + issuing, key)


@threat(rows.KEY_CA_CLIENT, rows.CERTIFICATE_TWIN)
@pytest.mark.parametrize(
    ("start", "end", "usage"),
    [
        (-100, -10, ExtendedKeyUsageOID.CLIENT_AUTH),
        (100, 200, ExtendedKeyUsageOID.CLIENT_AUTH),
        (-100, 100, ExtendedKeyUsageOID.SERVER_AUTH),
        (-100, 100, ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
    ids=["expired", "not yet valid", "wrong purpose", "same serial, same CA, another certificate"],
)
async def test_another_certificate_under_an_admitted_serial(
    gate: Gate, start: int, end: int, usage: x509.ObjectIdentifier
) -> None:
    client = gate.client()
    await gate.admit(client)
    assert client.issued is not None
    twin = signed_by(gate, serial=int(client.issued.serial, 16), start=start, end=end, usage=usage)
    assert is_refusal(await twin.http.get("/x"))
    assert (await client.http.get("/x")).status_code == 200


def of_its_own(gate: Gate, serial: int) -> Client:
    """A stranger's certificate, signed by itself, with a serial of its choice."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    return gate.with_certificate(certificate.public_bytes(Encoding.PEM).decode(), key)


async def counted(gate: Gate) -> list[tuple[str, str, str, int]]:
    async with Dictionary(gate.config.admin) as dictionary:
        return [(r.verdict, r.identity, r.serial, r.times) for r in await dictionary.refusals()]


async def test_a_stranger_is_counted_under_no_serial_of_its_choice(gate: Gate) -> None:
    """It would be told of whoever has that serial, and as many of them would crowd the others out."""
    client = gate.client()
    await gate.admit(client)
    assert client.issued is not None
    for serial in (int(client.issued.serial, 16), 7, 8):
        assert is_refusal(await of_its_own(gate, serial).http.get("/x"))
    assert await counted(gate) == [("certificate not valid", "", "", 3)]


async def test_a_request_that_is_none_is_not_said_to_be_of_a_bad_certificate(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)
    await raw(client, gate, b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n folded: x\r\n\r\n")
    assert await verdicts(gate, 1) == ["request not valid"]
    async with httpx.AsyncClient() as plain:
        assert is_refusal(await plain.get(gate.url.replace("https", "http")))
    assert await verdicts(gate, 2) == ["request not valid", "no certificate"]


@threat(rows.LOG_SPOILED)
@pytest.mark.parametrize("mode", ["njs", "stock"])
async def test_no_request_spoils_the_log(tmp_path: Path, mode: str) -> None:
    """Its lines are JSON, whatever bytes anybody sends; what is no request's target is not repeated."""
    async with running(Gate(tmp_path, time.time, mode=mode)) as gate:
        client = gate.client()
        targets = (b"/x?\xff", b"/\xc3\xa9", b'/x?"\\', b"/x?\x01")
        shown = ("not ASCII", "not ASCII", 'GET /x?"\\ HTTP/1.1', "not ASCII")
        for number, (target, request) in enumerate(zip(targets, shown, strict=True), 1):
            await raw(client, gate, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await logged(gate, number))[-1]["request"] == request


async def test_a_refusal_is_told_once_whoever_asks(gate: Gate) -> None:
    """By two gateway workers at one nginx, say, whose own workers share what they count."""
    clients = [gate.client(app=f"a{i}") for i in range(100)]
    async with AsyncExitStack() as stack:
        asking = [await stack.enter_async_context(Dictionary(gate.config.admin)) for _ in range(8)]
        for _ in range(10):
            for client in clients:
                assert is_refusal(await client.http.get("/x"))
            told = await asyncio.gather(*(dictionary.refusals() for dictionary in asking))
            assert [r.times for found in told for r in found] == [1] * len(clients)


@threat(rows.KEY_MANAGER_GATEWAY, rows.KEY_OPERATOR_GLASS, rows.NO_CERTIFICATE)
async def test_a_certificate_of_another_ca(gate: Gate, tmp_path: Path) -> None:
    create_ca(tmp_path / "foreign", "sdn.example.org", PASSPHRASE, int(time.time()))
    stranger = gate.client(load_authority(tmp_path / "foreign", PASSPHRASE))
    await gate.admit(stranger)
    assert is_refusal(await stranger.http.get("/x"))
    assert gate.upstream.requests == []


@threat(rows.KEY_CA_CLIENT, rows.CERTIFICATE_TWIN)
async def test_the_same_serial_of_another_ca(tmp_path: Path) -> None:
    """Of a foreign one, and of one that nginx trusts too (both are, while the issuing CA is replaced)."""
    gate = Gate(tmp_path, time.time)
    authorities = {}
    for name in ("foreign", "trusted"):
        create_ca(tmp_path / name, "sdn.example.org", PASSPHRASE, int(time.time()))
        authorities[name] = load_authority(tmp_path / name, PASSPHRASE)
    with gate.config.client_ca.open("a") as file:
        file.write((tmp_path / "trusted" / "client-ca.pem").read_text())
    async with running(gate):
        client = gate.client()
        await gate.admit(client)
        assert client.issued is not None
        for number, authority in enumerate(authorities.values(), 1):
            gate.authority = authority
            twin = signed_by(
                gate, serial=int(client.issued.serial, 16), start=-9, end=99, usage=ExtendedKeyUsageOID.CLIENT_AUTH
            )
            assert is_refusal(await twin.http.get("/x"))
            assert await verdicts(gate, number) == ["certificate not valid", "other certificate"][:number]
        assert (await client.http.get("/x")).status_code == 200


@threat(rows.IDENTITY_SPOOFED)
@pytest.mark.parametrize(
    "name",
    [
        "Client-Cert",
        "client-cert-chain",
        "X-Attestgate-Identity",
        "X-ATTESTGATE-INTEGRITY",
        "X-Attestgate-Anything",
        "X_Attestgate_Identity",
        "X-SSL-Client-Cert",
        "X-SSL-Client-S-DN",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-For",
        "X-Accel-Redirect",
        "Remote-User",
    ],
)
async def test_what_spells_an_identity_from_outside_is_stripped(gate: Gate, name: str) -> None:
    client = gate.client()
    await gate.admit(client)
    headers = [(name, "spoofed"), (name, "spoofed-too"), ("X-Request-Id", "kept")]
    response = await client.http.get("/x", headers=headers)
    assert response.status_code == 200
    assert "spoofed" not in response.text
    assert dict(response.json()["headers"])["x-request-id"] == "kept"


async def raw(client: Client, gate: Gate, request: bytes) -> bytes:
    """Send bytes over mTLS as they are, and read the head of the answer."""
    reader, writer = await asyncio.open_connection("localhost", gate.config.port, ssl=client.context)
    writer.write(request)
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    return answer


@threat(rows.CONNECTION_OUTLIVES)
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"TRACE /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nHost: twice\r\nConnection: close\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["websocket", "h2c", "connect", "trace", "http2 preface", "two hosts", "smuggling"],
)
async def test_ways_to_outlive_or_confuse_the_check_are_refused(gate: Gate, request_: bytes) -> None:
    client = gate.client()
    await gate.admit(client)
    answer = await raw(client, gate, request_)
    assert not answer.startswith(b"HTTP/1.1 101")
    status = answer.split(b" ")[1]
    assert status in {b"400", b"403", b"405", b"501", b"505"}
    assert gate.upstream.requests == []


@threat(rows.SESSION_RESUMED)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with running(Gate(tmp_path, time.time, tls12=True)) as gate:
        client = gate.client()
        client.context.maximum_version = version
        await gate.admit(client)
        await no_session(gate, client)


async def no_session(gate: Gate, client: Client) -> None:
    """The session of each connection is offered at the next, and not taken."""

    def shake(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        plain = socket.create_connection(("localhost", gate.config.port))
        with client.context.wrap_socket(plain, server_hostname="localhost", session=session) as tls:
            tls.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while tls.recv(65536):
                pass
            return tls.session, tls.session_reused

    session, _ = await asyncio.to_thread(shake, None)
    for _ in range(3):
        session, reused = await asyncio.to_thread(shake, session)
        assert not reused


@threat(rows.SESSION_RESUMED)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_tls_is_1_3(gate: Gate, version: ssl.TLSVersion) -> None:
    client = gate.client()
    client.context.maximum_version = version
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("localhost", gate.config.port, ssl=client.context)


@threat(rows.CONNECTION_OUTLIVES)
async def test_a_slow_body_does_not_outlive_the_admission(gate: Gate) -> None:
    """The request began admitted; the last byte of its body comes after the withdrawal."""
    client = gate.client()
    await gate.admit(client)
    reader, writer = await asyncio.open_connection("localhost", gate.config.port, ssl=client.context)
    writer.write(
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    writer.write(b"ab")
    await writer.drain()
    await gate.withdraw(client.key)
    writer.write(b"cd")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 403")
    assert gate.upstream.requests == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_of_every_size_arrive_whole_up_to_the_limit(gate: Gate, chunked: bool) -> None:
    client = gate.client()
    await gate.admit(client)

    async def pieces(body: bytes):  # type: ignore[no-untyped-def]
        for start in range(0, len(body), 5000):
            yield body[start : start + 5000]

    for size in (0, 1, 20_000, 1024 * 1024):
        body = b"x" * size
        response = await client.http.post("/x", content=pieces(body) if chunked else body)
        assert response.status_code == 200
        assert response.json()["body"] == body.decode()
    if chunked:
        header = b"Transfer-Encoding: chunked\r\n\r\n100000\r\n" + b"x" * 1024 * 1024 + b"\r\n1\r\nx\r\n0\r\n\r\n"
    else:
        header = b"Content-Length: 1048577\r\n\r\n"
    answer = await raw(client, gate, b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + header)
    assert answer.startswith(b"HTTP/1.1 413")


@threat(rows.CONNECTION_OUTLIVES)
async def test_a_stream_ends_with_the_admission(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)
    with pytest.raises(httpx.RemoteProtocolError):
        async with client.http.stream("GET", "/stream") as response:
            assert response.status_code == 200
            pieces = response.aiter_bytes()
            assert await anext(pieces) == b"piece\n"
            gate.upstream.more.set()
            assert await anext(pieces) == b"piece\n"
            await gate.withdraw(HOST)
            gate.upstream.more.set()
            assert [piece async for piece in pieces] == []
    assert await verdicts(gate, 1) == ["cut: no longer admitted"]


async def test_a_stream_ends_with_its_time(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, response_s=1)) as gate:
        client = gate.client()
        await gate.admit(client)
        begun = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.http.stream("GET", "/stream") as response:
                async for _ in response.aiter_bytes():
                    gate.upstream.more.set()
        assert time.monotonic() - begun >= 0.9
        assert await verdicts(gate, 1) == ["cut: response took too long"]


async def test_a_restart_forgets_everything_and_shows_another_epoch(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)
    async with Dictionary(gate.config.admin) as dictionary:
        before = (await dictionary.health()).epoch
        await gate.nginx.kill()
        with pytest.raises(NginxError):
            await dictionary.health()
        await gate.nginx.start()
        after = (await dictionary.health()).epoch
        assert before != after
        assert await gate.contents() == {}
        with pytest.raises(OtherEpoch):
            await dictionary.put(before, {HOST: HostEntry(sequence=1, since=0, until=2**33, host="h1")})
        with pytest.raises(OtherEpoch):
            await dictionary.remove(before, [HOST])
    assert is_refusal(await client.http.get("/x"))


@threat(rows.NGINX_FULL)
async def test_a_full_zone_refuses_new_ones_and_evicts_nobody(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, zone="64k")) as gate:
        client = gate.client()
        await gate.admit(client)
        many = {f"host.{i:032x}": HostEntry(sequence=1, since=0, until=2**33, host="h1") for i in range(2000)}
        async with Dictionary(gate.config.admin) as dictionary:
            epoch = (await dictionary.health()).epoch
            with pytest.raises(ZoneFull):
                await dictionary.put(epoch, many)
            assert (await client.http.get("/x")).status_code == 200
            await dictionary.remove(epoch, list(many))
            assert set(await gate.contents()) == {client.key, HOST}


async def test_a_full_zone_still_answers_a_worker_that_comes_back(tmp_path: Path) -> None:
    """What tells the outside of a worker has lapsed, and takes no room where there is none."""
    async with running(Gate(tmp_path, time.time, zone="64k")) as gate, Dictionary(gate.config.admin) as dictionary:
        epoch = (await dictionary.contents()).epoch
        many = {f"host.{i:032x}": HostEntry(sequence=1, since=0, until=2**33, host="h1") for i in range(2000)}
        with pytest.raises(ZoneFull):
            await dictionary.put(epoch, many)
        assert (await dictionary.health()).epoch == epoch


async def test_many_of_the_largest_leases_go_in_several_requests(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time)) as gate:
        allow = [f"GET,HEAD,POST /{'x' * 230}/{i}/**" for i in range(32)]
        entry = CertificateEntry(
            sequence=1,
            since=0,
            until=2**33,
            sha256="ab" * 32,
            identity="spiffe://sdn.example.org/host/h1/app/a1",
            host_key=HOST,
            integrity="unanchored",
            marks="simulated",
            allow=allow,
        )
        async with Dictionary(gate.config.admin) as dictionary:
            health = await dictionary.health()
            entries = {f"cert.7f{i:030x}": entry for i in range(2000)}
            assert len(entry.model_dump_json()) * len(entries) > 16 * MAX_BODY
            await dictionary.put(health.epoch, entries)
            assert (await dictionary.health()).entries == health.entries + len(entries)
            await dictionary.remove(health.epoch, list(entries))
            assert (await dictionary.health()).entries == health.entries


@threat(rows.ADMIN_REACHED)
async def test_the_admin_socket_is_for_its_owner_and_takes_only_entries(gate: Gate) -> None:
    assert gate.config.folder.stat().st_mode & 0o777 == 0o700
    assert gate.config.admin.stat().st_mode & 0o777 == 0o600
    transport = httpx.AsyncHTTPTransport(uds=str(gate.config.admin))
    async with httpx.AsyncClient(transport=transport, base_url="http://nginx") as http:
        epoch = (await http.get("/health")).json()["epoch"]
        for body in (
            b"",
            b"nope",
            b"null",
            json.dumps({"epoch": epoch}).encode(),
            json.dumps(
                {"epoch": epoch, "entries": [{"key": "epoch", "since": 1, "until": 2**33, "sequence": 1, "value": "x"}]}
            ).encode(),
            json.dumps(
                {
                    "epoch": epoch,
                    "entries": [{"key": "cert.zz", "since": 1, "until": 2**33, "sequence": 1, "value": "x"}],
                }
            ).encode(),
            json.dumps(
                {"epoch": epoch, "entries": [{"key": "cert.aa", "since": 1, "until": "x", "sequence": 1, "value": "x"}]}
            ).encode(),
            json.dumps(
                {
                    "epoch": epoch,
                    "entries": [{"key": "cert.aa", "since": 1, "until": 2**33, "sequence": 1, "value": {}}],
                }
            ).encode(),
        ):
            assert (await http.request("PUT", "/entries", content=body)).status_code == 400
        assert (await http.request("DELETE", "/entries", json={"epoch": epoch, "keys": ["epoch"]})).status_code == 400
        assert (await http.post("/entries")).status_code == 405
        assert (await http.get("/other")).status_code == 404
        assert (await http.get("/health")).json()["epoch"] == epoch
    assert await gate.contents() == {}


@threat(rows.ADMIN_REACHED)
async def test_the_admin_pages_are_not_on_the_outside(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)
    for path in ("/health", "/entries"):
        assert "headers" in (await client.http.get(path)).json(), "answered by upstream, not by the admin server"


@threat(rows.ADMIN_REACHED)
@pytest.mark.parametrize("value", ["", "{", "null", '{"kind":"host"}', '{"kind":"cert"}'])
async def test_a_spoiled_entry_admits_nobody(gate: Gate, value: str) -> None:
    client = gate.client()
    await gate.admit(client)
    transport = httpx.AsyncHTTPTransport(uds=str(gate.config.admin))
    async with httpx.AsyncClient(transport=transport, base_url="http://nginx") as http:
        epoch = (await http.get("/health")).json()["epoch"]
        entry = {
            "key": client.key,
            "since": int(time.time()),
            "until": int(time.time()) + 60,
            "sequence": 1,
            "value": value,
        }
        assert (await http.put("/entries", json={"epoch": epoch, "entries": [entry]})).status_code == 200
    assert is_refusal(await client.http.get("/x"))
    assert gate.upstream.requests == []


async def test_an_upstream_that_is_away_is_a_502_for_the_admitted_only(tmp_path: Path) -> None:
    gate = Gate(tmp_path, time.time)
    async with gate.nginx:
        client, stranger = gate.client(), gate.client(app="a2")
        await gate.admit(client)
        assert (await client.http.get("/x")).status_code == 502
        assert is_refusal(await stranger.http.get("/x"))
        await client.http.aclose()
        await stranger.http.aclose()


def test_the_default_configuration_says_where_the_controller_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="controller"):
        NginxConfig(
            folder=tmp_path,
            port=1,
            certificate=tmp_path,
            key=tmp_path,
            client_ca=tmp_path,
            controller="10.0.0.1:80",
        )
