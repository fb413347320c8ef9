"""Reading the answers of Intel's provisioning certification service, or of a caching service (PCCS) in its place.

PCS API v4. Bodies and headers as Intel's documentation gives them, and as PCCS gives them where it differs: CRLs may
come in DER or in hexadecimal, and the issuer chains are URL-encoded PEM in a response header.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx

from attestgate.manager.attestation.fetch import Service
from attestgate.manager.verification.sgx.collateral import MAX_PIECE, Collateral
from attestgate.schemas.base import Refusal


@dataclass(frozen=True)
class Pcs:
    """A service: `url` is its base up to `/sgx/certification/v4`, without it or with it.

    `root_crl_url` is for Intel's own PCS, which has the root CA's CRL elsewhere. `retry_wait_s` is the first pause
    between tries, `patience_s` the longest that all of a fetch may take.
    """

    http: httpx.AsyncClient
    url: str
    root_crl_url: str | None = None
    retry_wait_s: float = 0.2
    patience_s: float = 20.0

    async def fetch(self, fmspc: str, ca: str) -> Collateral:
        """Everything for one platform model: FMSPC in hexadecimal, ca `platform` or `processor`.

        Raises Refusal: `collateral.unavailable` if the service cannot be reached or fails, `collateral.answer` if it
        answers something that is not collateral.
        """
        try:
            async with asyncio.timeout(self.patience_s):
                pck_crl = await self._get(f"pckcrl?ca={ca}&encoding=der")
                tcb = await self._get(f"tcb?fmspc={fmspc.upper()}")
                qe = await self._get("qe/identity")
                root_crl = await self._get(self.root_crl_url or "rootcacrl")
        except TimeoutError:
            raise self._service.unavailable(self.url, f"no whole answer within {self.patience_s} s") from None
        tcb_info, tcb_signature = _signed(tcb, "tcbInfo")
        qe_identity, qe_signature = _signed(qe, "enclaveIdentity")
        return Collateral(
            pck_crl_issuer_chain=_chain(pck_crl, "SGX-PCK-CRL-Issuer-Chain"),
            root_ca_crl=_der(root_crl.content),
            pck_crl=_der(pck_crl.content),
            tcb_info_issuer_chain=_chain(tcb, "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=_chain(qe, "SGX-Enclave-Identity-Issuer-Chain"),
            qe_identity=qe_identity,
            qe_identity_signature=qe_signature,
        )

    async def _get(self, path: str) -> httpx.Response:
        base = self.url.rstrip("/").removesuffix("/sgx/certification/v4")
        url = path if path.startswith(("http://", "https://")) else f"{base}/sgx/certification/v4/{path}"
        return await self._service.ask("GET", url, limit=MAX_PIECE)

    @property
    def _service(self) -> Service:
        return Service(self.http, "collateral", self.retry_wait_s)


def _signed(response: httpx.Response, key: str) -> tuple[str, bytes]:
    """The signed document as Intel signed it (compact JSON in the order received), and its signature (r, s)."""
    url = str(response.url)
    try:
        body: Any = json.loads(response.content)
        text = json.dumps(body[key], separators=(",", ":"), ensure_ascii=False)
        signature = bytes.fromhex(body["signature"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _answer(url, f"a JSON object with {key} and signature", type(error).__name__) from None
    if len(signature) != 64 or len(text) > MAX_PIECE:
        raise _answer(url, "a signature of 64 bytes", f"{len(signature)} bytes")
    return text, signature


def _chain(response: httpx.Response, *names: str) -> str:
    for name in names:
        if name in response.headers:
            return unquote(response.headers[name])
    raise _answer(str(response.url), f"the header {names[0]}", "no such header")


def _der(content: bytes) -> bytes:
    try:
        return bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        return content


def _answer(url: str, expected: str, found: str) -> Refusal:
    action = "check that the URL is a PCS or PCCS, API v4"
    return Refusal.because("collateral.answer", url, expected=expected, found=found, action=action)
