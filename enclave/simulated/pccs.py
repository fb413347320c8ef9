"""The simulated attestation service: a PCCS with Intel's version-4 API, answering for one authority.

Source: Intel, "SGX Provisioning Certificate Caching Service API", version 4. As in a PCCS (and unlike Intel's own
PCS), CRLs are in hexadecimal unless the query has encoding=der.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from attestgate.enclave.simulated.authority import Authority, SignedDocument
from attestgate.enclave.simulated.documents import PckCa

_CAS: dict[str, PckCa] = {"platform": "platform", "processor": "processor"}


def application(authority: Path) -> Starlette:
    """The service as an ASGI application. Raises Refusal (`file.*`) for a folder that is not an authority's."""
    service = _Service(Authority(authority))
    routes = [
        Route("/pckcrl", service.pck_crl),
        Route("/tcb", service.tcb_info),
        Route("/qe/identity", service.qe_identity),
        Route("/rootcacrl", service.root_crl),
    ]
    return Starlette(routes=[Mount("/sgx/certification/v4", routes=routes)])


async def serve(
    authority: Path, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until cancelled. Port 0 picks a free one; `ready` gets the base URL. Raises OSError for a busy port."""
    config = uvicorn.Config(application(authority), log_config=None, access_log=False, lifespan="off")
    with socket.create_server((host, port)) as listener:
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        if ready is not None:
            ready(f"http://{host}:{listener.getsockname()[1]}")
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process this runs in."""
        yield


class _Service:
    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def pck_crl(self, request: Request) -> Response:
        """GET pckcrl?ca=processor|platform[&encoding=der]."""
        ca = _CAS.get(request.query_params.get("ca", ""))
        if ca is None:
            return PlainTextResponse("Invalid request parameters.", status_code=400)
        crl = self._authority.pck_crl(ca, _now())
        headers = {"SGX-PCK-CRL-Issuer-Chain": quote(self._authority.ca_chain(ca))}
        if request.query_params.get("encoding") == "der":
            return Response(crl, media_type="application/pkix-crl", headers=headers)
        return PlainTextResponse(crl.hex(), headers=headers)

    async def tcb_info(self, request: Request) -> Response:
        """GET tcb?fmspc=…"""
        fmspc = request.query_params.get("fmspc", "")
        if fmspc.upper() != self._authority.documents.tcb_info.fmspc:
            return PlainTextResponse("No cache data for this platform.", status_code=404)
        return self._signed("tcbInfo", "TCB-Info-Issuer-Chain", self._authority.tcb_info(_now()))

    async def qe_identity(self, _request: Request) -> Response:
        """GET qe/identity."""
        return self._signed("enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain", self._authority.qe_identity(_now()))

    async def root_crl(self, _request: Request) -> Response:
        """GET rootcacrl."""
        return PlainTextResponse(self._authority.root_crl(_now()).hex())

    def _signed(self, name: str, header: str, document: SignedDocument) -> Response:
        body = b'{"%s":%s,"signature":"%s"}' % (name.encode(), document.body, document.signature.hex().encode())
        headers = {header: quote(self._authority.signing_chain)}
        return Response(body, media_type="application/json", headers=headers)


def _now() -> datetime:
    return datetime.now(UTC)
