"""Settings of one gateway's nginx; compose/nginx/process.py renders its configuration from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from attestgate.schemas.settings_file import FilePath, Part

FORWARDED = (
    "Accept",
    "Accept-Encoding",
    "Accept-Language",
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Unmodified-Since",
    "Range",
    "Traceparent",
    "User-Agent",
    "X-Request-Id",
)
"""Request headers that are forwarded as the application sent them; all others are dropped."""


def quotable(path: Path) -> Path:
    """A path that can stand in nginx's configuration. Raises ValueError."""
    if not path.is_absolute() or any(c in '"\\$;{}' or not c.isprintable() for c in str(path)):
        raise ValueError("an absolute path without quotes, dollars, braces, semicolons and control characters")
    return path


def _not_identity(name: str) -> str:
    lower = name.lower()
    if lower.startswith(("x-attestgate-", "x-ssl-", "client-cert")) or lower in _RESERVED:
        raise ValueError("a header that the gateway itself sets")
    return name


_RESERVED = {"host", "connection", "upgrade", "content-length", "transfer-encoding", "te", "x-forwarded-client-cert"}
REJECTIONS = "rejections.sock"
PUBLIC = 256
PUBLIC_PER_ADDRESS = 32
"""Most connections at the public port."""
RESERVE = 256
"""Connections and files that nginx has left for the gateway worker's sockets, its logs and its listeners."""
QuotablePath = Annotated[FilePath, AfterValidator(quotable)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$"), AfterValidator(_not_identity)]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[km]$")]


class NginxConfig(Part):
    """One gateway's nginx. Sizes are in nginx's notation: `32m`, `64k`.

    `zone` holds about 2,500 admissions per megabyte; when it is full, new ones are refused and nothing is evicted.
    """

    folder: QuotablePath
    """nginx's own folder: configuration, logs, pid, admin socket. Created with mode 0700 if missing."""
    address: Annotated[str, StringConstraints(pattern=r"^[0-9.]{7,15}$")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """Port for applications."""
    certificate: QuotablePath
    """The gateway's own certificate chain, PEM."""
    key: QuotablePath
    """Its private key, PEM."""
    client_ca: QuotablePath
    """The CAs whose client certificates may be admitted, PEM."""
    controller: QuotablePath | Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:[0-9]{1,5}$")]
    """The SDN controller: a unix socket (then only nginx reaches it) or a loopback address and port."""
    zone: Size = "32m"
    """Shared memory for admissions."""
    body: Size = "1m"
    """Largest request body."""
    body_s: Annotated[int, Field(ge=1, le=3600)] = 10
    """Longest time from a request's first byte to its body's last, in seconds (checked every second)."""
    response_s: Annotated[int, Field(ge=1, le=3600)] = 30
    """Longest time from a request's first byte to its response's last, in seconds (checked at each chunk)."""
    connections: Annotated[int, Field(ge=1, le=100_000)] = 3500
    """Most connections from outside at once. Each nginx process needs twice as many open files, and 768 more."""
    connections_per_address: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Most connections from one address. Behind a load balancer that hides addresses: as many as `connections`."""
    connection_rate_per_address: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Most new connections per second from one address, after five seconds' worth at once. Needs njs. Behind a load
    balancer that hides addresses: as many as `connection_rate`."""
    connection_rate: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Most new connections per second from all addresses; those that use up their own rate share a fifth as many,
    besides. Further ones wait for up to 2 s. Needs njs."""
    requests_per_application: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Most requests of one certificate in progress at once, WebSockets included; further ones get 503."""
    uploads_per_application: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Most of them with a body that is chunked, or of 10,000 bytes or more."""
    uploads: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Most such requests of all applications at once. nginx needs up to twice `body` in memory for each."""
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Worker processes."""
    forwarded: tuple[HeaderName, ...] = FORWARDED
    """Request headers that are forwarded as the application sent them."""
    tls12: bool = False
    """Accept TLS 1.2 too, with forward-secret AEAD suites only."""
    relay: QuotablePath | None = None
    """The gateway worker's `relay.socket`, through which WebSockets go. Without it every upgrade is refused."""
    public_port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """Port for plain HTTP: `/health`, for a load balancer, and revocation lists under `/crl/`. Off by default."""
    crl: QuotablePath | None = None
    """Revocation lists of all CAs of the chain, the root's too, PEM: for a stock nginx; reload it when they change."""
    mode: Literal["njs", "stock"] = "njs"
    """`stock` works without njs: a map file, revocation lists and reloads. Slower and weaker: see docs/gateway.md."""

    @model_validator(mode="after")
    def _relay_needs_njs(self) -> Self:
        if self.relay is not None and self.mode == "stock":
            raise ValueError('relay needs mode = "njs"')
        return self

    @property
    def admin(self) -> Path:
        """The unix socket on which the gateway worker talks to nginx."""
        return self.folder / "admin.sock"

    @property
    def rejections_socket(self) -> Path:
        """The unix socket on which the gateway worker is told how many connections were rejected: beside `admin`."""
        return self.folder / REJECTIONS

    @property
    def tls_socket(self) -> Path:
        """The unix socket of the server for applications: nginx passes a connection to it once it has been counted."""
        return self.folder / "tls.sock"

    @property
    def public_socket(self) -> Path:
        """The same for `public_port`."""
        return self.folder / "http.sock"

    @property
    def map(self) -> Path:
        """The admitted certificates, for a stock nginx: `nginx_map` of the gateway worker."""
        return self.folder / "admitted.map"

    @property
    def public(self) -> Path:
        """What nginx serves to anyone: the worker puts revocation lists here."""
        return self.folder / "public"

    @property
    def slots(self) -> int:
        """Connections in each nginx process: all from outside, one more upstream for each, and the reserve."""
        return 2 * self.connections + PUBLIC + RESERVE

    @property
    def open_files(self) -> int:
        """Open files that each nginx process needs."""
        return self.slots + RESERVE
