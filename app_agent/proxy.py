"""A program for the agent: forwards the requests of a command outside the enclave, which holds the TLS to the gateway.

The command is only as trustworthy as whatever measures it: the certificate is marked `proxy`, and a policy has to
allow it. It listens on a unix socket that only its own user can open; on loopback only if the settings name a port,
which any local process can then use.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from attestgate.app_agent.application import Application
from attestgate.schemas.base import Refusal

PROXY = True
"""Read by the agent, and part of what it attests."""
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host")
)
"""Connection-specific fields, which a proxy must not forward (RFC 9110, section 7.6.1)."""


async def main(application: Application) -> None:
    """Forward requests until cancelled. Raises Refusal `settings.proxy`."""
    listeners = list(_listeners(application))
    try:
        async with application.client() as http:

            async def carry(scope: Scope, receive: Receive, send: Send) -> None:
                await _carry(http, scope, receive, send)

            config = uvicorn.Config(carry, log_config=None, access_log=False, lifespan="off", ws="none", http="h11")
            server = _Server(config)
            serving = asyncio.create_task(server.serve(sockets=listeners))
            try:
                await asyncio.shield(serving)
            finally:
                server.force_exit = server.should_exit = True
                await serving
    finally:
        for listener in listeners:
            listener.close()
        if application.settings.proxy_socket is not None:
            application.settings.proxy_socket.unlink(missing_ok=True)


def _listeners(application: Application) -> list[socket.socket]:
    settings = application.settings
    if settings.proxy_socket is None and settings.proxy_port is None:
        raise Refusal.because(
            "settings.proxy",
            "proxy_socket",
            expected="a path for the proxy's unix socket, or proxy_port",
            found="neither",
            action="add proxy_socket to the application's settings",
        )
    found = []
    if settings.proxy_socket is not None:
        found.append(unix_socket(settings.proxy_socket))
    if settings.proxy_port is not None:
        loopback = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        loopback.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        loopback.bind(("127.0.0.1", settings.proxy_port))
        found.append(loopback)
    return found


def unix_socket(path: Path) -> socket.socket:
    """A socket (0600) to listen on, replacing a stale one. Raises OSError for any other file, which stays."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.is_socket():
        path.unlink()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


class _Server(uvicorn.Server):
    """Leaves the process's signals to the agent."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def _carry(http: httpx.AsyncClient, scope: Scope, receive: Receive, send: Send) -> None:
    """Forward one request (ASGI 3) to the gateway unchanged, and stream the answer back."""
    names = {name for name, _ in scope["headers"]}
    # Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3).
    left_out = HOP_BY_HOP | {b"content-length"} if b"transfer-encoding" in names else HOP_BY_HOP
    request = httpx.Request(
        scope["method"],
        http.base_url,
        headers=[(name, value) for name, value in scope["headers"] if name not in left_out],
        content=_body(receive) if names & {b"content-length", b"transfer-encoding"} else None,
        extensions={"target": _target(scope)},
    )
    try:
        response = await http.send(request, stream=True)
    except httpx.HTTPError as error:
        await _answer(send, 502, f"the gateway is unreachable: {type(error).__name__}\n".encode())
        return
    try:
        passed = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOP_BY_HOP]
        await send({"type": "http.response.start", "status": response.status_code, "headers": passed})
        async for piece in response.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await response.aclose()


def _target(scope: Scope) -> bytes:
    """The target as it came; in absolute form, as proxies get it (RFC 9112, section 3.2.2), less the authority.

    Whatever host the command names, the request goes to the gateway: the connection is `base_url`'s.
    """
    path: bytes = scope["raw_path"]
    if path.startswith(b"http://"):
        path = b"/" + path.removeprefix(b"http://").partition(b"/")[2]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the command disconnected")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _answer(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
