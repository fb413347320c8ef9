"""The legacy service over HTTP: EPID quotes of a simulated machine, a simulated IAS with its own root, the checks."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.enclave.simulated import authority, platform
from attestgate.enclave.simulated import ias as simulated
from attestgate.enclave.simulated.authority import OLD_CPUSVN
from attestgate.enclave.simulated.platform import Platform
from attestgate.manager.attestation.fetch import ATTEMPTS, Service
from attestgate.manager.attestation.ias_client import Ias
from attestgate.manager.attestation.service import Epid, Root, Wanted
from attestgate.manager.verification.epid.structure import parse_quote
from attestgate.manager.verification.sgx.same_platform import same_platform
from attestgate.manager.verification.x509 import certificates
from attestgate.schemas.base import Refusal
from attestgate.schemas.sgx import BASELINE, IasVerdict, SgxPolicy
from tests.support.reasons import codes, refusal_codes
from tests.support.sgx.simulated import ENCLAVE, REPORT_DATA, SimulatedSgx

SPID = bytes(range(16))


class Wire(httpx.AsyncBaseTransport):
    """The service as reached over HTTP: counted, and its answers changed where a test says so."""

    def __init__(self, folder: Path, authority_folder: Path) -> None:
        self._asgi = httpx.ASGITransport(simulated.application(folder, authority_folder))
        self.asked: list[str] = []
        self.changed: Callable[[httpx.Request, httpx.Response], httpx.Response] = lambda _request, response: response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        response = await self._asgi.handle_async_request(request)
        await response.aread()
        return self.changed(request, response)


@dataclass
class Bench:
    sgx: SimulatedSgx
    folder: Path
    wire: Wire

    def service(self, key: str | None = None, spid: bytes = SPID) -> Epid:
        state = simulated.read_state(self.folder)
        headers = {"Ocp-Apim-Subscription-Key": state.subscription_key if key is None else key}
        ias = Ias(Service(httpx.AsyncClient(transport=self.wire), "ias", 0.0, headers), "http://ias.test/")
        root = certificates((self.folder / "root.pem").read_bytes(), "root")[0]
        return Epid(ias, Root(root.public_bytes(Encoding.DER), simulated=True), b"salt", spid)

    def quote(self, *, spid: bytes = SPID, machine: str | None = None, **more: Any) -> bytes:
        folder = self.sgx.folder / (machine or self.sgx.machine)
        return simulated.epid_quote(Platform(folder), ENCLAVE, REPORT_DATA, spid, **more)

    async def appraise(self, quote: bytes | None = None, *, policy: SgxPolicy = BASELINE, at: int = 0) -> IasVerdict:
        wanted = Wanted(policy, "ab" * 32, (ENCLAVE.mrenclave.hex(),), REPORT_DATA)
        return await self.service().appraise(self.quote() if quote is None else quote, wanted, at or int(time.time()))


@pytest.fixture
def bench(sgx: SimulatedSgx) -> Bench:
    simulated.create(sgx.folder / "ias")
    return Bench(sgx, sgx.folder / "ias", Wire(sgx.folder / "ias", sgx.folder / "authority"))


async def not_appraised(bench: Bench, service: Epid, quote: bytes) -> list[str]:
    wanted = Wanted(BASELINE, "ab" * 32, (ENCLAVE.mrenclave.hex(),), REPORT_DATA)
    with pytest.raises(Refusal) as caught:
        await service.appraise(quote, wanted, int(time.time()))
    return refusal_codes(caught)


async def test_a_good_quote(bench: Bench) -> None:
    verdict = await bench.appraise()
    assert verdict.accepted, verdict.reasons
    assert verdict.verified and verdict.simulated and verdict.linkable
    assert (verdict.quote_status, verdict.mrenclave) == ("OK", ENCLAVE.mrenclave.hex())
    assert bench.wire.asked == ["GET /attestation/v4/sigrl/0000a751", "POST /attestation/v4/report"]


async def test_the_pseudonym_tells_machines_apart_and_changes_with_the_spid(bench: Bench) -> None:
    other = SimulatedSgx(bench.sgx.folder, machine="other")
    one, again = await bench.appraise(), await bench.appraise()
    elsewhere = await bench.appraise(bench.quote(machine=other.machine))
    assert one.platform and again.platform and elsewhere.platform
    assert same_platform(one.platform, again.platform, BASELINE) == ()
    assert len(same_platform(one.platform, elsewhere.platform, BASELINE)) == 4
    spid = b"\5" * 16
    wanted = Wanted(BASELINE, "ab" * 32, (ENCLAVE.mrenclave.hex(),), REPORT_DATA)
    for_another = await bench.service(spid=spid).appraise(bench.quote(spid=spid), wanted, int(time.time()))
    assert for_another.platform and for_another.platform != one.platform


async def test_each_state_of_a_platform(bench: Bench) -> None:
    folder = bench.sgx.folder
    platform.set_tcb(folder / bench.sgx.machine, folder / "authority", OLD_CPUSVN)
    assert codes(await bench.appraise()) == ["ias.status"]
    accepting = SgxPolicy(version=1, ias_statuses=("OK", "GROUP_OUT_OF_DATE"))
    assert (await bench.appraise(policy=accepting)).accepted
    authority.revoke_pck(folder / "authority", platform.read_pck(folder / bench.sgx.machine))
    revoked = await bench.appraise(policy=accepting)
    assert (codes(revoked), revoked.quote_status) == (["ias.status"], "KEY_REVOKED")


async def test_the_revocation_list_that_the_quote_was_made_with(bench: Bench) -> None:
    state = simulated.read_state(bench.folder)
    simulated.write_state(bench.folder, state.model_copy(update={"sig_rl_version": 7}))
    listed = await bench.service().ias.sig_rl(simulated.GROUP[::-1].hex())
    assert int.from_bytes(listed[:4], "little") == 7
    assert (await bench.appraise()).quote_status == "SIGRL_VERSION_MISMATCH"
    assert (await bench.appraise(bench.quote(sig_rl_version=7))).accepted


async def test_quotes_that_are_not_for_us(bench: Bench) -> None:
    quote = bytearray(bench.quote())
    quote[2] = 0
    assert await not_appraised(bench, bench.service(), bytes(quote)) == ["quote.sign_type"]
    assert await not_appraised(bench, bench.service(), bench.quote(spid=b"\1" * 16)) == ["quote.spid"]
    quote[2], quote[4] = 1, 0xEE
    assert await not_appraised(bench, bench.service(), bytes(quote)) == ["ias.unavailable"]  # an unknown group: 404
    for junk in (b"", bytes(500), bench.quote() + b"\0", bench.sgx.quote()):
        assert (await not_appraised(bench, bench.service(), junk))[0].startswith("quote.")
    assert parse_quote(bench.quote()).linkable


async def test_a_forged_quote(bench: Bench) -> None:
    quote = bytearray(bench.quote())
    quote[48 + 64] ^= 1
    assert (await bench.appraise(bytes(quote))).quote_status == "SIGNATURE_INVALID"
    other = SimulatedSgx(bench.sgx.folder / "elsewhere")
    stranger = simulated.epid_quote(Platform(other.folder / other.machine), ENCLAVE, REPORT_DATA, SPID)
    assert (await bench.appraise(stranger)).quote_status == "SIGNATURE_INVALID"


async def test_the_subscription_key(bench: Bench) -> None:
    assert await not_appraised(bench, bench.service(key="wrong"), bench.quote()) == ["ias.unavailable"]
    assert "wrong" not in repr(bench.service(key="wrong"))


def edit(**fields: object) -> Callable[[httpx.Request, httpx.Response], httpx.Response]:
    def changed(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.method == "GET":
            return response
        body = json.loads(response.content) | fields
        headers = {k: v for k, v in response.headers.items() if k.lower().startswith("x-iasreport")}
        return httpx.Response(200, headers=headers, content=json.dumps(body).encode())

    return changed


async def test_what_a_man_in_the_middle_gets(bench: Bench) -> None:
    bench.wire.changed = edit(isvEnclaveQuoteStatus="OK", id="2")
    verdict = await bench.appraise()
    assert codes(verdict) == ["ias.signature"]
    assert not verdict.verified


async def test_an_older_answer_is_not_taken_again(bench: Bench) -> None:
    quote, kept = bench.quote(), []

    def keep(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.method == "POST":
            kept.append((response.headers, response.content))
            headers, content = kept[0]
            return httpx.Response(200, headers=headers, content=content)
        return response

    bench.wire.changed = keep
    assert (await bench.appraise(quote)).accepted
    assert codes(await bench.appraise(quote)) == ["ias.nonce"]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_a_service_that_does_not_answer(bench: Bench, status: int) -> None:
    bench.wire.changed = lambda _request, _response: httpx.Response(status)
    assert await not_appraised(bench, bench.service(), bench.quote()) == ["ias.unavailable"]
    assert len(bench.wire.asked) == (ATTEMPTS if status in (429, 500, 503) else 1)


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-IASReport-Signature": "!"}, {"X-IASReport-Signature": base64.b64encode(b"x").decode()}],
)
async def test_an_answer_that_is_none(bench: Bench, headers: dict[str, str]) -> None:
    bench.wire.changed = lambda request, response: (
        response if request.method == "GET" else httpx.Response(200, headers=headers, content=b"{}")
    )
    assert await not_appraised(bench, bench.service(), bench.quote()) == ["ias.answer"]
    bench.wire.changed = lambda _request, _response: httpx.Response(200, content=b"!")
    assert await not_appraised(bench, bench.service(), bench.quote()) == ["ias.answer"]


async def test_the_quote_body_is_compared(bench: Bench) -> None:
    """A genuine report, with our nonce, on another quote of the same enclave."""
    other = simulated.epid_quote(
        Platform(bench.sgx.folder / bench.sgx.machine),
        ENCLAVE.model_copy(update={"isv_svn": 9}),
        REPORT_DATA,
        SPID,
    )
    service = bench.service()
    answer = await service.ias.report(other)

    async def instead(_quote: bytes) -> object:
        return answer

    object.__setattr__(service.ias, "report", instead)
    wanted = Wanted(BASELINE, "ab" * 32, (ENCLAVE.mrenclave.hex(),), REPORT_DATA)
    assert codes(await service.appraise(bench.quote(), wanted, int(time.time()))) == ["ias.quote_body"]
