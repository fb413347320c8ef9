"""The PCCS: dcap-qvl's own fetcher works against it, and it answers as Intel's does."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import dcap_qvl
import httpx
import pytest
from cryptography import x509

from attestgate.enclave.simulated import authority, pccs, platform
from attestgate.enclave.simulated.authority import Authority
from attestgate.enclave.simulated.documents import PckCa
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.schemas.base import Refusal

API = "/sgx/certification/v4"
IDENTITY = EnclaveIdentity(mrenclave=b"e" * 32, mrsigner=b"s" * 32, isv_prod_id=1, isv_svn=1, debug=False)


@pytest.fixture
def issuer(tmp_path: Path) -> Path:
    authority.create(tmp_path / "authority")
    return tmp_path / "authority"


@pytest.fixture
async def url(issuer: Path) -> AsyncIterator[str]:
    base = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(pccs.serve(issuer, ready=base.set_result))
    yield await base
    serving.cancel()
    await asyncio.wait([serving])
    assert serving.cancelled()


@pytest.mark.parametrize("ca", ["platform", "processor"])
async def test_dcap_qvl_fetches_and_verifies(tmp_path: Path, issuer: Path, url: str, ca: PckCa) -> None:
    platform.create(tmp_path / "machine", issuer, ca)
    quote = platform.Platform(tmp_path / "machine").quote(IDENTITY, bytes(64))
    collateral = await dcap_qvl.get_collateral(url, quote)
    found = dcap_qvl.verify_with_root_ca(quote, collateral, Authority(issuer).root_der, int(time.time()))
    assert found.status == "UpToDate"


async def test_answers_follow_the_documents(issuer: Path, url: str) -> None:
    documents = authority.read_documents(issuer)
    newer = documents.tcb_info.model_copy(update={"tcb_evaluation_data_number": 99})
    authority.write_documents(issuer, documents.model_copy(update={"tcb_info": newer}))
    async with httpx.AsyncClient(base_url=url + API) as client:
        answer = await client.get("/tcb", params={"fmspc": newer.fmspc.lower()})
    assert answer.json()["tcbInfo"]["tcbEvaluationDataNumber"] == 99
    assert list(answer.json()["tcbInfo"])[:4] == ["id", "version", "issueDate", "nextUpdate"]
    chain = unquote(answer.headers["TCB-Info-Issuer-Chain"]).encode()
    assert len(x509.load_pem_x509_certificates(chain)) == 2


async def test_crls_are_hexadecimal_unless_der_is_asked_for(url: str) -> None:
    async with httpx.AsyncClient(base_url=url + API) as client:
        text = await client.get("/pckcrl", params={"ca": "platform"})
        der = await client.get("/pckcrl", params={"ca": "platform", "encoding": "der"})
        root = await client.get("/rootcacrl")
    issuers = [
        x509.load_der_x509_crl(crl).issuer.rfc4514_string()
        for crl in (bytes.fromhex(text.text), der.content, bytes.fromhex(root.text))
    ]
    assert ["Platform" in issuer for issuer in issuers] == [True, True, False]


@pytest.mark.parametrize(
    ("path", "status"), [("/tcb?fmspc=000000000000", 404), ("/tcb", 404), ("/pckcrl?ca=tdx", 400), ("/none", 404)]
)
async def test_unknown_is_unknown(url: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(url + API + path)).status_code == status


async def test_busy_port_and_no_authority_are_said(tmp_path: Path, issuer: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await pccs.serve(issuer, port=taken.getsockname()[1])
    with pytest.raises(Refusal):
        await pccs.serve(tmp_path / "nothing")
