"""Step 8: mutual TLS from inside the enclave, through the gateway, to the SDN controller."""

from __future__ import annotations

import os
import ssl

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from app_agent.step5_evidence import TlsKey
from schemas.settings import Measured


def ssl_context(key: TlsKey, chain: str, gateway_ca: str) -> ssl.SSLContext:
    """A client context with the enclave's key. The key goes to OpenSSL through anonymous memory, not through a file."""
    context = ssl.create_default_context(cadata=gateway_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as memory:
            memory.write(pem + chain.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def client(context: ssl.SSLContext, address: str, measured: Measured) -> httpx.AsyncClient:
    """An HTTP client for the gateway at `address` (host:port), which must prove the measured name."""

    async def name_gateway(request: httpx.Request) -> None:
        request.extensions = {**request.extensions, "sni_hostname": measured.gateway_name}
        request.headers["Host"] = measured.gateway_name

    return httpx.AsyncClient(
        base_url=f"https://{address}",
        verify=context,
        event_hooks={"request": [name_gateway]},
        timeout=10.0,
        trust_env=False,
    )
