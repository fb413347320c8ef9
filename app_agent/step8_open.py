"""Step 8: mutual TLS from inside the enclave, through the gateway, to the SDN controller."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpx

from attestgate.schemas.settings import Measured


class RenewingTransport(httpx.AsyncBaseTransport):
    """Connects with the newest credential. Requests in flight complete with the credential they started with.

    `context` returns the current TLS context. The gateway still admits a certificate for a period after its successor,
    so connections with the previous one are kept until there is a third.
    """

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        self._context = context
        self._used: ssl.SSLContext | None = None
        self._present: httpx.AsyncHTTPTransport | None = None
        self._before: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx."""
        context = self._context()
        if self._present is None or context is not self._used:
            third, self._before = self._before, self._present
            self._used, self._present = context, httpx.AsyncHTTPTransport(verify=context, trust_env=False)
            if third is not None:
                await third.aclose()
        return await self._present.handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        for transport in (self._present, self._before):
            if transport is not None:
                await transport.aclose()
        self._present = self._before = None


def client(context: Callable[[], ssl.SSLContext], address: str, measured: Measured) -> httpx.AsyncClient:
    """An HTTP client for the gateway at `address` (host:port), which must prove the measured name."""

    async def name_gateway(request: httpx.Request) -> None:
        # The server's certificate is checked against this measured name, wherever `address` leads.
        request.extensions = {**request.extensions, "sni_hostname": measured.gateway_name}
        request.headers["Host"] = measured.gateway_name

    # trust_env=False: no proxy and no CA file out of environment variables.
    return httpx.AsyncClient(
        base_url=f"https://{address}",
        transport=RenewingTransport(context),
        event_hooks={"request": [name_gateway]},
        timeout=10.0,
        trust_env=False,
    )
