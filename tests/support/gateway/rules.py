"""Rules for one subtree, and requests that they allow or refuse."""

from __future__ import annotations

import asyncio

from tests.support.gateway.gate import Client, Gate

ONE_SUBTREE = ("GET /switches/**", "POST,DELETE /switches/s1/**", "PUT /exact")


async def send(client: Client, gate: Gate, method: str, target: str) -> int:
    """The status of a request whose target goes out as it is written."""
    reader, writer = await asyncio.open_connection("localhost", gate.config.port, ssl=client.context)
    writer.write(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1])


ALLOWED = [
    ("GET", "/switches"),
    ("GET", "/switches/"),
    ("GET", "/switches/s2/flows"),
    ("GET", "/switches/s2/flows?since=../../x&y=%2e%2e"),
    ("POST", "/switches/s1/flows"),
    ("DELETE", "/switches/s1/flows/7"),
    ("PUT", "/exact"),
    ("GET", "/switches/topology=flow%3A1"),
    ("GET", "/switches/a.b/c..d"),
]


REFUSED = [
    ("POST", "/switches/s2/flows"),
    ("POST", "/switches"),
    ("HEAD", "/switches"),
    ("get", "/switches"),
    ("PUT", "/exact/"),
    ("PUT", "/exact/more"),
    ("PUT", "/Exact"),
    ("GET", "/SWITCHES"),
    ("GET", "/"),
    ("GET", "/switchesx"),
    ("GET", "/switches%2fs1"),
    ("GET", "/switche%73"),
    ("POST", "/switches/s1/../s2/flows"),
    ("POST", "/switches/s1/..%2fs2/flows"),
    ("POST", "/switches/s1/%2e%2e/s2/flows"),
    ("POST", "/switches/s1/%2E./s2/flows"),
    ("POST", "/switches/s1/%252e%252e/s2/flows"),
    ("POST", "/switches/s1/..;/s2/flows"),
    ("POST", "/switches/s1/;x=/../s2/flows"),
    ("POST", "/switches/s1;x/flows"),
    ("POST", "/switches/s1/./../s2"),
    ("POST", "/switches/s1//../s2"),
    ("GET", "//switches"),
    ("GET", "/switches//s1"),
    ("GET", "/x/../switches"),
    ("GET", "/./switches"),
    ("GET", "/switches/.hidden"),
    ("GET", "/switches\\s1"),
    ("GET", "/switches/%5cs1"),
    ("GET", "/switches/%00"),
    ("GET", "/switches/%c0%af"),
    ("GET", "/switches/%"),
    ("GET", "/switches/%zz"),
    ("GET", "/switches/%23"),
    ("GET", "/switches/%3f"),
    ("GET", "/switches/é"),
    ("GET", "http://localhost/other"),
    ("GET", "http://localhost"),
    ("GET", "*"),
    ("OPTIONS", "*"),
]
