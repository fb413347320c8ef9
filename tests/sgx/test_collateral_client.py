"""The collateral client against the simulated PCCS: caching, renewal, high-water marks, and a service that is down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from attestgate.bus.api import Bucket, BusError, Entry
from attestgate.bus.memory.server import MemoryServer
from attestgate.enclave.simulated.pccs import application
from attestgate.manager.attestation.collateral_client import PAUSE_S, Cached, CollateralClient, WhenDown
from attestgate.manager.attestation.fetch import ATTEMPTS
from attestgate.manager.attestation.pcs_client import Pcs
from attestgate.manager.local.high_water import PolicyFloors
from attestgate.manager.verification.sgx.collateral import MAX_PIECE, examine
from attestgate.schemas.base import Refusal, pack, unpack
from tests.support.reasons import refusal_codes
from tests.support.sgx.simulated import NOW, SimulatedSgx
from tests.support.threats import rows, threat

AT = NOW


@dataclass
class Marks:
    """High-water marks in memory."""

    kept: dict[str, int] = field(default_factory=dict)

    def get(self, name: str) -> int:
        return self.kept.get(name, 0)

    def raise_to(self, name: str, value: int) -> None:
        self.kept[name] = max(value, self.get(name))


class Service(httpx.AsyncBaseTransport):
    """The simulated PCCS, counted, and broken where a test says so."""

    def __init__(self, authority: Path) -> None:
        self._asgi = httpx.ASGITransport(application(authority))
        self.asked: list[str] = []
        self.instead: Callable[[httpx.Request], httpx.Response | None] = lambda _request: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.raw_path.decode().removeprefix("/sgx/certification/v4/"))
        return self.instead(request) or await self._asgi.handle_async_request(request)


@dataclass
class Bench:
    """A client with everything about it."""

    sgx: SimulatedSgx
    service: Service
    bucket: Bucket
    marks: Marks
    policy: PolicyFloors = field(default_factory=PolicyFloors)

    def client(self, when_down: WhenDown = "cache", **settings: int) -> CollateralClient:
        http = httpx.AsyncClient(transport=self.service)
        pcs = Pcs(http, "http://pccs.test/", retry_wait_s=0.0)
        root = self.sgx.authority.root_der
        return CollateralClient(
            pcs, self.bucket, self.marks, self.policy, root_der=root, when_down=when_down, **settings
        )

    async def keys(self) -> list[str]:
        return await self.bucket.keys()


@pytest.fixture
async def bench(sgx: SimulatedSgx) -> Bench:
    bucket = MemoryServer().connect().bucket("collateral")
    return Bench(sgx, Service(sgx.folder / "authority"), bucket, Marks())


def down(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def no_collateral(client: CollateralClient, quote: bytes, at: int = AT) -> list[str]:
    with pytest.raises(Refusal) as caught:
        await client.for_quote(quote, at)
    return refusal_codes(caught)


async def test_what_is_fetched_verifies_a_quote(bench: Bench) -> None:
    quote = bench.sgx.quote()
    collateral = await bench.client().for_quote(quote, AT)
    assert bench.sgx.appraise(quote, collateral, at=AT).accepted
    fmspc = "51A700000000"
    assert bench.service.asked == ["pckcrl?ca=platform&encoding=der", f"tcb?fmspc={fmspc}", "qe/identity", "rootcacrl"]


async def test_it_is_asked_once_for_many_quotes_and_many_workers(bench: Bench) -> None:
    quote, client = bench.sgx.quote(), bench.client()
    sets = await asyncio.gather(*(client.for_quote(quote, AT) for _ in range(20)))
    assert len(bench.service.asked) == 4
    assert await bench.client().for_quote(quote, AT + 1) == sets[0]
    assert len(bench.service.asked) == 4


async def test_it_is_asked_again_after_a_while(bench: Bench) -> None:
    quote, client = bench.sgx.quote(), bench.client(refresh_s=100)
    await client.for_quote(quote, AT)
    await client.for_quote(quote, AT + 99)
    assert len(bench.service.asked) == 4
    await client.for_quote(quote, AT + 100)
    assert len(bench.service.asked) == 8


async def test_what_ends_soon_is_renewed_early_but_not_at_every_quote(bench: Bench) -> None:
    bench.sgx.say(lifetime_s=7200)
    quote, client = bench.sgx.quote(), bench.client(refresh_s=1_000_000, early_s=7200)
    await client.for_quote(quote, AT)
    await client.for_quote(quote, AT + PAUSE_S - 1)
    assert len(bench.service.asked) == 4
    await client.for_quote(quote, AT + PAUSE_S)
    assert len(bench.service.asked) == 8


async def test_a_claim_in_the_bucket_delays_asking_once_only(bench: Bench) -> None:
    quote = bench.sgx.quote()
    await bench.client().for_quote(quote, AT)
    entry = await bench.bucket.get("51a700000000.platform")
    assert entry is not None and entry.value is not None
    cached = unpack(Cached, entry.value)
    await bench.bucket.put(entry.key, pack(cached.model_copy(update={"fetched_at": AT + 10_000_000})))
    client = bench.client(refresh_s=100)
    await client.for_quote(quote, AT + 10)
    assert len(bench.service.asked) == 4
    await client.for_quote(quote, AT + 110)
    assert len(bench.service.asked) == 8


@threat(rows.COLLATERAL_OLD)
@pytest.mark.parametrize("junk", [b"", b"junk", b"\x80"])
async def test_junk_in_the_bucket_is_as_nothing(bench: Bench, junk: bytes) -> None:
    await bench.bucket.put("51a700000000.platform", junk)
    assert await bench.client().for_quote(bench.sgx.quote(), AT)
    assert len(bench.service.asked) == 4


async def test_a_bus_that_fails_does_not_stop_attestation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_arguments: object) -> Entry:
        raise BusError("no connection")

    monkeypatch.setattr(bench.bucket, "get", broken)
    monkeypatch.setattr(bench.bucket, "put", broken)
    assert await bench.client().for_quote(bench.sgx.quote(), AT)


async def test_down_with_a_set_that_stands(bench: Bench) -> None:
    quote = bench.sgx.quote()
    cached = await bench.client().for_quote(quote, AT)
    bench.service.instead = down
    later = AT + 4000
    client = bench.client("cache")
    assert await client.for_quote(quote, later) == cached
    asked = len(bench.service.asked)
    assert asked == 4 + ATTEMPTS
    assert await client.for_quote(quote, later + PAUSE_S - 1) == cached
    assert len(bench.service.asked) == asked
    assert await client.for_quote(quote, later + PAUSE_S) == cached
    assert len(bench.service.asked) == asked + ATTEMPTS
    assert await no_collateral(bench.client("refuse"), quote, later) == ["collateral.unavailable"]


async def test_down_with_nothing_or_only_what_has_expired(bench: Bench) -> None:
    quote = bench.sgx.quote()
    collateral = await bench.client().for_quote(quote, AT)
    bench.service.instead = down
    end = examine(collateral, bench.sgx.authority.root_der).closes()
    client = bench.client("cache")
    assert await client.for_quote(quote, end + 5) == collateral
    assert await no_collateral(client, quote, end + 6) == ["collateral.unavailable"]
    await bench.bucket.delete("51a700000000.platform")
    assert await no_collateral(bench.client("cache"), quote) == ["collateral.unavailable"]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503, 302])
async def test_an_answer_that_is_no_answer(bench: Bench, status: int) -> None:
    bench.service.instead = lambda _request: httpx.Response(status)
    assert await no_collateral(bench.client(), bench.sgx.quote()) == ["collateral.unavailable"]
    assert len(bench.service.asked) == (ATTEMPTS if status in (429, 500, 503) else 1)


async def test_it_recovers_from_a_passing_failure(bench: Bench) -> None:
    failures = iter([httpx.Response(503), httpx.Response(502)])
    bench.service.instead = lambda _request: next(failures, None)
    assert await bench.client().for_quote(bench.sgx.quote(), AT)


@pytest.mark.parametrize(
    ("path", "answer", "code"),
    [
        ("tcb", httpx.Response(200, content=b"{}"), "collateral.answer"),
        ("tcb", httpx.Response(200, content=b"[" * 100_000), "collateral.answer"),
        ("tcb", httpx.Response(200, content=b'{"tcbInfo":{},"signature":"00"}'), "collateral.answer"),
        ("qe/identity", httpx.Response(200, content=b'{"enclaveIdentity":1,"signature":1}'), "collateral.answer"),
        ("rootcacrl", httpx.Response(200, content=b"junk"), "collateral.root_ca_crl.malformed"),
        ("rootcacrl", httpx.Response(200, content=bytes(MAX_PIECE + 1)), "collateral.answer"),
        ("pckcrl", httpx.Response(200, content=b"junk"), "collateral.answer"),
    ],
)
async def test_bad_answers_have_reasons(bench: Bench, path: str, answer: httpx.Response, code: str) -> None:
    bench.service.instead = lambda request: answer if f"/{path}" in request.url.path else None
    assert await no_collateral(bench.client(), bench.sgx.quote()) == [code]


@threat(rows.COLLATERAL_OLD)
async def test_a_signature_that_does_not_verify_is_not_cached(bench: Bench) -> None:
    other = SimulatedSgx(bench.sgx.folder / "elsewhere")
    bench.service = Service(other.folder / "authority")
    assert "collateral.tcb_info.root" in await no_collateral(bench.client(), bench.sgx.quote())
    assert await bench.keys() == []
    assert bench.marks.kept == {}


@threat(rows.COLLATERAL_OLD)
async def test_nothing_older_than_seen_is_accepted(bench: Bench) -> None:
    quote = bench.sgx.quote()
    await bench.client().for_quote(quote, AT)
    old = await bench.bucket.get("51a700000000.platform")
    assert old is not None and old.value is not None
    bench.sgx.say(tcb_info={"tcbEvaluationDataNumber": 21}, qe_identity={"tcbEvaluationDataNumber": 21}, crl_number=5)
    client = bench.client(refresh_s=10)
    newer = await client.for_quote(quote, AT + 10)
    assert examine(newer, bench.sgx.authority.root_der).tcb_info.evaluation_number == 21  # type: ignore[union-attr]
    # the bus rolls the bucket back: the old set is not used, the service is asked
    await bench.bucket.put(old.key, old.value)
    asked = len(bench.service.asked)
    assert await bench.client().for_quote(quote, AT + 11)
    assert len(bench.service.asked) == asked + 4
    # the service rolls back: the newer set stays in use, and without one there is a refusal
    bench.sgx.say(tcb_info={"tcbEvaluationDataNumber": 20}, qe_identity={"tcbEvaluationDataNumber": 20}, crl_number=4)
    assert await client.for_quote(quote, AT + 10 + PAUSE_S) == newer
    await bench.bucket.delete(old.key)
    assert set(await no_collateral(bench.client(), quote, AT + 12)) == {
        "collateral.tcb_info.51a700000000.number.floor",
        "collateral.qe_identity.number.floor",
        "collateral.pck_crl.platform.number.floor",
        "collateral.root_ca_crl.number.floor",
    }


@threat(rows.COLLATERAL_OLD)
@pytest.mark.parametrize(("floor", "value", "count"), [("tcb_evaluation", 21, 2), ("crl_number", 2, 2)])
async def test_the_manifests_floors(bench: Bench, floor: str, value: int, count: int) -> None:
    setattr(bench.policy, floor, value)
    found = await no_collateral(bench.client(), bench.sgx.quote())
    assert len(found) == count
    assert all(code.endswith(".floor") for code in found)


async def test_a_quote_under_another_root_makes_nobody_ask(bench: Bench, tmp_path: Path) -> None:
    stranger = SimulatedSgx(tmp_path / "stranger")
    assert await no_collateral(bench.client(), stranger.quote()) == ["quote.pck_chain.root"]
    assert (await no_collateral(bench.client(), b"junk"))[0].startswith("quote.")
    assert bench.service.asked == []
