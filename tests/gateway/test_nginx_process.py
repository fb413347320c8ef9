"""nginx as a child: its configuration is taken by nginx itself, what is wrong is said in one line, nothing is left."""

import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from attestgate.compose.nginx.process import Nginx, render
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import FORWARDED, NginxConfig
from tests.support.gateway.gate import Gate, until
from tests.support.reasons import refusal_code

pytestmark = pytest.mark.stack


@pytest.mark.parametrize(
    "more",
    [{}, {"controller": "127.0.0.1:8080"}, {"zone": "1m", "body": "16k", "workers": 1, "forwarded": ("Accept",)}],
)
async def test_nginx_takes_the_configuration(tmp_path: Path, more: dict[str, Any]) -> None:
    config = Gate(tmp_path, time.time).config.model_copy(update=more)
    await Nginx(config).check()
    assert not config.admin.exists() or not config.admin.is_socket()
    text = render(config)
    assert "ssl_verify_client on;" in text and "ssl_session_tickets off;" in text and "%{" not in text


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    gate = Gate(tmp_path, time.time)
    (tmp_path / "server.key").unlink()
    for attempt in (gate.nginx.check, gate.nginx.start):
        with pytest.raises(Refusal) as refusal:
            await attempt()
        assert "server.key" in str(refusal.value)
    assert gate.nginx.pid is None


async def test_a_busy_port_is_one_line(tmp_path: Path, gate: Gate) -> None:
    (tmp_path / "second").mkdir()
    other = Gate(tmp_path / "second", time.time)
    second = Nginx(other.config.model_copy(update={"port": gate.config.port}))
    with pytest.raises(Refusal) as refusal:
        await second.start()
    (reason,) = refusal.value.reasons
    assert reason.code == "nginx.start"
    assert reason.found.startswith(f"bind() to 127.0.0.1:{gate.config.port} failed")
    assert second.pid is None
    assert gate.nginx.pid is not None


async def test_a_small_limit_on_files_is_not_that_of_nginx(tmp_path: Path) -> None:
    """Connections of strangers who say nothing keep out neither an application nor the worker."""
    gate = Gate(tmp_path, time.time)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip(f"no process here may have 8192 files: the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        await gate.nginx.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1024), hard))
    address = ("127.0.0.1", gate.config.port)
    silent = [
        socket.create_connection(address, source_address=(source, 0))
        for source in ("127.0.0.2", "127.0.0.3", "127.0.0.4")
        for _ in range(200)
    ]
    try:
        client = gate.client()
        await gate.admit(client)
        assert (await client.http.get("/x")).status_code == 502
        await client.http.aclose()
    finally:
        for connection in silent:
            connection.close()
        await gate.nginx.stop()


async def test_a_folder_that_is_too_deep_for_a_socket(tmp_path: Path) -> None:
    config = Gate(tmp_path, time.time).config.model_copy(update={"folder": tmp_path / ("x" * 100)})
    with pytest.raises(Refusal) as refusal:
        await Nginx(config).start()
    assert refusal_code(refusal) == "nginx.folder"


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_nothing_is_left(tmp_path: Path, how: str) -> None:
    nginx = Gate(tmp_path, time.time).nginx
    await nginx.start()
    pid = nginx.pid
    assert pid is not None
    await getattr(nginx, how)()
    assert nginx.pid is None

    async def left() -> bool:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return False
        return True

    # Workers of a killed master wait for init to reap them.
    await until(left, lambda some: not some)
    await nginx.stop()
    await nginx.start()
    await nginx.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"port": 0},
        {"address": "0.0.0.0; }"},
        {"folder": Path("relative")},
        {"key": Path('/a"; user root')},
        {"certificate": Path("/$host")},
        {"client_ca": Path("/a\nb")},
        {"controller": "198.51.100.1:80"},
        {"zone": "32m; x"},
        {"forwarded": ("X-Attestgate-Identity",)},
        {"forwarded": ("client-cert",)},
        {"forwarded": ("X-SSL-Anything",)},
        {"forwarded": ("X-Forwarded-Client-Cert",)},
        {"forwarded": ("Upgrade",)},
        {"forwarded": ("A b",)},
    ],
)
def test_settings_that_would_say_something_else_to_nginx(tmp_path: Path, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "folder": tmp_path,
        "port": 8443,
        "certificate": tmp_path / "c",
        "key": tmp_path / "k",
        "client_ca": tmp_path / "ca",
        "controller": tmp_path / "s",
    }
    assert NginxConfig(**good).forwarded == FORWARDED
    with pytest.raises(ValidationError):
        NginxConfig(**good | change)
