"""What the gateway tells anybody: that it works, and what was revoked; and its configuration, as nginx takes it."""

import hashlib
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from attestgate.cli.main import app
from attestgate.compose.nginx.process import Nginx, free_port, render
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.public import MOST, publish
from attestgate.manager.pki import crl
from attestgate.manager.pki.authority import key_id
from attestgate.schemas.admission import crl_key
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.settings_file import load_part
from tests.support.gateway.gate import Gate, running
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

RUNNER = CliRunner()


def settings(gate: Gate, folder: Path, **more: object) -> Path:
    config = gate.config
    values: dict[str, object] = {
        "folder": folder / "nginx",
        "port": free_port(),
        "certificate": config.certificate,
        "key": config.key,
        "client_ca": config.client_ca,
        "controller": config.controller,
        **more,
    }
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool | int) else repr(str(value))}"
        for key, value in values.items()
    ]
    path = folder / "nginx.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.stack
async def test_health_is_that_of_the_worker(tmp_path: Path) -> None:
    port = free_port()
    async with running(Gate(tmp_path, time.time, public_port=port)) as gate, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}"
        silent = await http.get(f"{url}/health")
        assert (silent.status_code, silent.json()) == (503, {"gateway": "its worker is silent"})
        async with Dictionary(gate.config.admin) as dictionary:
            await dictionary.health()
        ready = await http.get(f"{url}/health")
        assert (ready.status_code, ready.json()) == (200, {"gateway": "ready"})
        for path in ("/", "/entries", "/refusals", "/crl/", "/crl/../admin.sock", "/nginx.conf"):
            assert (await http.get(url + path)).status_code in {400, 403, 404}


@pytest.mark.stack
async def test_a_revocation_list_is_served_as_it_was_signed(tmp_path: Path) -> None:
    port = free_port()
    async with running(Gate(tmp_path, time.time, public_port=port)) as gate, httpx.AsyncClient() as http:
        now = int(time.time())
        issuer = key_id(gate.authority.certificate)
        entry = crl.Revocation(0x0ABC, now, x509.ReasonFlags.privilege_withdrawn)
        der = crl.extend(gate.authority, [], [entry], at=now, longest_s=3600)
        publish(gate.config.public, crl_key(issuer), der)
        answer = await http.get(f"http://127.0.0.1:{port}/crl/{issuer}.crl")
        assert answer.headers["content-type"] == "application/pkix-crl"
        found = x509.load_der_x509_crl(answer.content)
        assert found.get_revoked_certificate_by_serial_number(0x0ABC) is not None
        newer = crl.extend(gate.authority, [found], [], at=now + 1, longest_s=3600)
        publish(gate.config.public, crl_key(issuer), newer)
        assert (await http.get(f"http://127.0.0.1:{port}/crl/{issuer}.crl")).content == newer


@threat(rows.REVOCATION_LIST_OLD)
@pytest.mark.parametrize(("key", "der"), [("crl.../x", b""), ("crl.ab", b"junk"), ("crl.ab", b""), ("crl.", b"")])
def test_what_is_no_revocation_list_is_not_published(tmp_path: Path, key: str, der: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        publish(tmp_path, key, der)
    assert refusal_code(refusal) == "crl.publish"
    assert list(tmp_path.rglob("*.crl")) == []


def test_whoever_writes_the_bus_does_not_fill_the_disk(tmp_path: Path) -> None:
    """Lists under made-up issuers are taken up to a bound; those that are there can still be replaced."""
    authority = Gate(tmp_path, time.time).authority
    der = crl.extend(authority, [], [], at=int(time.time()), longest_s=3600)
    for number in range(MOST):
        publish(tmp_path, crl_key(f"{number:040x}"), der)
    with pytest.raises(Refusal) as refusal:
        publish(tmp_path, crl_key("ab"), der)
    assert refusal_code(refusal) == "crl.publish"
    newer = crl.extend(authority, [], [], at=int(time.time()) + 1, longest_s=3600)
    publish(tmp_path, crl_key(f"{0:040x}"), newer)
    assert (tmp_path / "crl" / f"{0:040x}.crl").read_bytes() == newer
    assert len(list((tmp_path / "crl").iterdir())) == MOST


@pytest.mark.stack
@pytest.mark.parametrize("more", [{}, {"tls12": True, "public_port": 1, "body": "8m"}], ids=["defaults", "everything"])
def test_the_command_renders_what_nginx_takes(tmp_path: Path, more: dict[str, object]) -> None:
    gate = Gate(tmp_path, time.time)
    if "public_port" in more:
        more = {**more, "public_port": free_port()}
    path = settings(gate, tmp_path, **more)
    result = RUNNER.invoke(app, ["gateway", "config", str(path), "--check"])
    assert result.exit_code == 0, result.output
    assert render(load_part(NginxConfig, path)) in result.output


def test_a_wrong_key_in_nginx_settings_is_named(tmp_path: Path) -> None:
    path = settings(Gate(tmp_path, time.time), tmp_path, colour="blue")
    result = RUNNER.invoke(app, ["gateway", "config", str(path)])
    assert isinstance(result.exception, Refusal)
    assert "colour" in result.exception.reasons[0].field


@pytest.mark.stack
async def test_nginx_says_what_it_does_not_take(tmp_path: Path) -> None:
    gate = Gate(tmp_path, time.time)
    gate.config.key.write_text("no key")
    with pytest.raises(Refusal) as refusal:
        await Nginx(gate.config).check()
    assert refusal_code(refusal) == "nginx.config"
    assert "server.key" in refusal.value.reasons[0].found


@pytest.mark.stack
async def test_tls_1_2_where_it_is_asked_for(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, tls12=True)) as gate:
        client = gate.client()
        client.context.maximum_version = ssl.TLSVersion.TLSv1_2
        await gate.admit(client)
        response = await client.http.get("/x")
        assert response.status_code == 200
        stream = response.extensions["network_stream"]
        assert stream.get_extra_info("ssl_object").version() == "TLSv1.2"
        await gate.withdraw(client.key)
        assert (await client.http.get("/x")).status_code == 403


def test_a_list_grows_and_lets_go_of_what_has_ended(tmp_path: Path) -> None:
    authority = Gate(tmp_path, time.time).authority
    at = int(time.time())

    def revoked(serial: int, when: int) -> crl.Revocation:
        return crl.Revocation(serial, when, x509.ReasonFlags.key_compromise)

    first = crl.read(authority, crl.extend(authority, [], [revoked(1, at)], at=at, longest_s=3600))
    second = crl.read(authority, crl.extend(authority, [first], [revoked(2, at + 10)], at=at + 10, longest_s=3600))
    assert [entry.serial_number for entry in second] == [1, 2]
    numbers = [c.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for c in (first, second)]
    assert numbers == [at, at + 10]
    again = crl.read(authority, crl.extend(authority, [second], [revoked(2, at + 99)], at=at + 99, longest_s=3600))
    entry = again.get_revoked_certificate_by_serial_number(2)
    assert entry is not None and entry.revocation_date_utc == datetime.fromtimestamp(at + 10, UTC)
    later = crl.read(authority, crl.extend(authority, [again], [], at=at + 3605, longest_s=3600))
    assert [entry.serial_number for entry in later] == [2]


def test_a_list_of_another_ca_is_none(tmp_path: Path) -> None:
    one, other = Gate(tmp_path / "one", time.time), Gate(tmp_path / "other", time.time)
    der = crl.extend(one.authority, [], [], at=int(time.time()), longest_s=60)
    for bad in (der, der[:-1], b"", hashlib.sha256(der).digest()):
        with pytest.raises(Refusal) as refusal:
            crl.read(other.authority, bad)
        assert refusal_code(refusal) == "crl.read"
    assert x509.load_der_x509_crl(der).public_bytes(Encoding.DER) == der
