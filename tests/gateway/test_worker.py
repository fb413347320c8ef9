"""The worker between a bus and the real nginx: what it believes, applies and says, and that it recovers."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import structlog.testing

from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.entries import DictionaryEntry, HostEntry
from attestgate.schemas.admission import post
from attestgate.schemas.base import Refusal
from tests.support.gateway.deployment import HOST, GatewayDeployment, at_work, new_signer, status
from tests.support.gateway.gate import (
    APP_SESSION,
    HOST_SESSION,
    FakeBus,
    Gate,
    host_lease,
    lease,
    running,
    until,
    withdrawal,
)
from tests.support.gateway.statements import desired_state
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack


async def test_admitted_reported_and_passed(working: GatewayDeployment) -> None:
    client = working.gate.client()
    assert await status(client) == 403
    await working.admit(client)
    assert await status(client) == 200
    assert (await working.reported(client.key, "admitted", 1)).app_session == APP_SESSION
    assert (await working.reported(HOST, "admitted", 1)).app_session is None
    assert client.issued is not None
    told = await working.told("admitted", lambda data: data["key"] == client.key)
    assert told["who"] == client.issued.identity


async def test_once_withdrawal_is_reported_nothing_passes(working: GatewayDeployment) -> None:
    client, other = working.gate.client(), working.gate.client(app="a2")
    await working.admit(client, other)
    assert await status(client) == await status(other) == 200
    await working.withdraw(client.key)
    assert await status(client) == 403
    assert await status(other) == 200
    assert (await working.told("withdrawn"))["reason"] == "app.revoked"


async def test_a_host_takes_all_its_applications_with_it(working: GatewayDeployment) -> None:
    clients = [working.gate.client(app=f"a{i}") for i in range(5)]
    await working.admit(*clients)
    assert [await status(c) for c in clients] == [200] * 5
    await working.withdraw(HOST)
    assert [await status(c) for c in clients] == [403] * 5


@threat(rows.VIEWER_FLOODS)
async def test_a_watch_that_waits_behind_others_calls_keeps_nothing_from_nginx(working: GatewayDeployment) -> None:
    client = working.gate.client()
    working.bus.slow = True
    await working.admit(client)
    assert await status(client) == 200
    await working.withdraw(client.key)
    assert await status(client) == 403


@threat(rows.ADMISSION_FORGED)
async def test_what_is_heard_and_not_stored_changes_nothing(working: GatewayDeployment) -> None:
    now, client = int(time.time()), working.gate.client()
    gone = withdrawal(client.key, now)
    await working.admit(client)
    for key in (client.key, "a..b", "*", ""):
        await working.bus.deliver(key, post(working.manager, gone))
    await working.bus.deliver(client.key, b"garbage")
    assert await status(client) == 200
    await working.withdraw(client.key)
    assert await status(client) == 403


async def test_a_renewal_is_reported_and_is_no_new_admission(working: GatewayDeployment) -> None:
    client = working.gate.client()
    await working.admit(client)
    await working.admit(client, sequence=2)
    await working.admit(client, sequence=3)
    assert await status(client) == 200
    assert [data["key"] for what, data in working.events if what == "admitted"].count(client.key) == 1


@threat(rows.ADMISSION_FORGED, rows.CREDENTIAL_MANAGER, rows.KEY_GATEWAY_ADMITS)
async def test_what_is_not_the_managers_word_admits_nobody(working: GatewayDeployment) -> None:
    now = int(time.time())
    client = working.gate.client()
    good = lease(client, now)
    stranger = new_signer()
    await working.say(host_lease(now))
    await working.bus.put("cert.aa", post(working.manager, good))
    await working.bus.put(client.key, post(working.manager, good)[:-1])
    await working.bus.put(client.key, b"")
    await working.say(good, signer=stranger)
    await working.say(good, signer=working.identity)
    await working.say(lease(client, now, gateways="other"))
    await working.say(lease(client, now + 60))
    await working.say(lease(client, now - 400))

    async def codes() -> list[Any]:
        return [cast(Any, data["reason"])["code"] for what, data in working.events if what == "refused"]

    assert await until(codes, lambda found: len(found) == 8) == [
        "signature.invalid",
        "message.encoding",
        "message.encoding",
        "signature.signer",
        "signature.signer",
        "admission.set",
        "admission.future",
        "admission.expired",
    ]
    assert await status(client) == 403
    assert set(await working.gate.contents()) <= {HOST}


@threat(rows.ADMISSION_REPLAYED)
async def test_old_statements_played_again_change_nothing(working: GatewayDeployment) -> None:
    now = int(time.time())
    client = working.gate.client()
    first = post(working.manager, lease(client, now, lease_s=40))
    await working.bus.put(client.key, first)
    await working.admit(client, sequence=2, lease_s=20)
    before = await working.gate.contents()
    await working.bus.put(client.key, first)
    await working.told("refused", lambda data: cast(Any, data["reason"])["code"] == "admission.sequence")
    assert await working.gate.contents() == before
    await working.withdraw(client.key, sequence=3)
    await working.bus.put(client.key, first)
    await working.told("refused", lambda data: cast(Any, data["reason"])["code"] == "admission.withdrawn")
    assert await status(client) == 403


@threat(rows.ADMISSION_REPLAYED)
async def test_a_deletion_in_the_bucket_neither_ends_nor_revives(working: GatewayDeployment) -> None:
    client, gone = working.gate.client(), working.gate.client(app="a2")
    await working.admit(client, gone)
    await working.withdraw(gone.key)
    for key in (client.key, gone.key):
        await working.bus.delete(key)
    await working.admit(other := working.gate.client(app="a3"), sequence=2)
    assert [await status(c) for c in (client, gone, other)] == [200, 403, 200]


@threat(rows.NGINX_FULL)
async def test_a_restarted_nginx_is_filled_again(working: GatewayDeployment) -> None:
    client, gone = working.gate.client(), working.gate.client(app="a2")
    await working.admit(client, gone)
    await working.withdraw(gone.key)
    await working.gate.nginx.kill()
    await working.gate.nginx.start()
    await until(working.gate.contents, lambda contents: client.key in contents)
    assert await status(client) == 200
    assert await status(gone) == 403
    assert (await working.told("reconciled"))["put"] == 2


async def test_nginx_away_is_told_and_waited_for(tmp_path: Path) -> None:
    gate = Gate(tmp_path, time.time)
    deployment = GatewayDeployment(gate)
    client = gate.client()
    async with at_work(deployment.worker()):
        await deployment.told("nginx-failed")
        now = int(time.time())
        await deployment.say(host_lease(now), lease(client, now))
        assert deployment.reports() == []
        async with running(gate):
            await deployment.reported(client.key, "admitted", 1)
            assert await status(client) == 200


async def test_without_a_worker_access_ends_by_itself(deployment: GatewayDeployment) -> None:
    client = deployment.gate.client()
    async with at_work(deployment.worker()):
        await deployment.admit(client, lease_s=2)
        assert await status(client) == 200

    async def answer() -> int:
        return await status(client)

    assert await until(answer, lambda code: code == 403) == 403


async def test_a_new_worker_goes_on_where_the_old_one_fell(deployment: GatewayDeployment) -> None:
    """Nobody is cut off by the change, the withdrawal in between is applied, and all of it is reported again."""
    client, gone = deployment.gate.client(), deployment.gate.client(app="a2")
    async with at_work(deployment.worker()):
        await deployment.admit(client, gone)
    deployment.bus.published.clear()
    now = int(time.time())
    await deployment.say(withdrawal(gone.key, now))
    answers = []
    async with at_work(deployment.worker()):
        while not {r.key for r in deployment.reports()} >= {HOST, client.key, gone.key}:
            answers.append(await status(client))
    assert set(answers) == {200}
    assert await status(gone) == 403


async def test_a_second_worker_at_one_nginx_is_refused(working: GatewayDeployment) -> None:
    """Cut off from the bus, it would put back what the first has taken out and reported."""
    client = working.gate.client()
    await working.admit(client)
    stale = FakeBus()
    stale.values = dict(working.bus.values)
    with pytest.raises(Refusal) as refusal:
        async with asyncio.timeout(15):
            await working.worker(stale, reconcile_s=1).run()
    assert refusal_code(refusal) == "gateway.running"
    await working.withdraw(client.key)
    assert await status(client) == 403


@threat(rows.NGINX_FULL)
async def test_entries_that_nobody_signed_are_removed(gate: Gate) -> None:
    deployment = GatewayDeployment(gate)
    stranger = gate.client()
    await gate.admit(stranger)
    assert await status(stranger) == 200
    async with at_work(deployment.worker(reconcile_s=1)):
        await until(gate.contents, lambda contents: not contents)
        assert await status(stranger) == 403
        async with Dictionary(gate.config.admin) as dictionary:
            entry = HostEntry(sequence=1, since=0, until=2**33, host="h1")
            await dictionary.put((await dictionary.health()).epoch, {HOST: entry})
        await until(gate.contents, lambda contents: not contents)


@threat(rows.WITHDRAWAL_WITHHELD)
async def test_a_lost_bus_is_followed_again(working: GatewayDeployment) -> None:
    client = working.gate.client()
    await working.admit(client)
    working.bus.down = True
    working.bus.break_watches()
    now = int(time.time())
    await working.say(withdrawal(client.key, now))
    assert await status(client) == 200, "nothing is known of it yet"
    working.bus.down = False
    await working.reported(client.key, "withdrawn", 2)
    assert await status(client) == 403


async def test_a_bus_that_takes_no_reports_and_events_holds_up_nothing(working: GatewayDeployment) -> None:
    client = working.gate.client()
    await working.admit(client)
    working.bus.down, working.emit_fails = True, True
    now = int(time.time())
    await working.say(withdrawal(client.key, now))

    async def answer() -> int:
        return await status(client)

    await until(answer, lambda code: code == 403)
    assert [r.state for r in working.reports() if r.key == client.key] == ["admitted"]
    working.bus.down = False
    await working.reported(client.key, "withdrawn", 2)


@threat(rows.NGINX_FULL)
async def test_a_full_zone_still_lets_withdrawals_through(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, zone="64k")) as gate:
        deployment = GatewayDeployment(gate)
        client = gate.client()
        async with at_work(deployment.worker()):
            await deployment.admit(client)
            now = int(time.time())
            many = [host_lease(now, host=f"h{i}", host_session=f"{i:032x}") for i in range(2, 602)]
            await deployment.say(*many)
            problem = await deployment.told("nginx-failed")
            assert "full" in str(problem["problem"])
            await deployment.say(withdrawal(client.key, now))
            await until(gate.contents, lambda contents: client.key not in contents)
            assert await status(client) == 403


async def test_the_log_names_the_session(working: GatewayDeployment) -> None:
    """Of an admission, of its end by either way, and of a refused request."""
    client, lapsing = working.gate.client(), working.gate.client(app="a2")
    with structlog.testing.capture_logs() as lines:
        await working.admit(lapsing, lease_s=3)
        await working.admit(client, sequence=2)
        await working.withdraw(client.key, sequence=3)
        assert await status(client) == 403
        await working.told("request-refused")
        await working.withdraw(HOST, sequence=3)
        await working.told("lapsed")
    named = {(line["event"], str(line.get("key", ""))[:4]): line.get("session") for line in lines if "gateway" in line}
    named.pop(("reconciled", ""), None)  # if it came before all of the bucket had been read
    assert named == {
        ("admitted", "host"): HOST_SESSION,
        ("admitted", "cert"): APP_SESSION,
        ("withdrawn", "cert"): APP_SESSION,
        ("request-refused", ""): APP_SESSION,
        ("withdrawn", "host"): HOST_SESSION,
        ("lapsed", "cert"): APP_SESSION,
    }


async def test_lapsed_leases_are_told(working: GatewayDeployment) -> None:
    client = working.gate.client()
    await working.admit(client, lease_s=3)
    await working.told("lapsed", lambda data: data["key"] == client.key)


async def test_a_report_is_of_what_nginx_was_asked_and_not_of_what_came_meanwhile(
    deployment: GatewayDeployment,
) -> None:
    client = deployment.gate.client()
    now = int(time.time())

    class Interrupted(Dictionary):
        """While an admission is being written, its withdrawal arrives."""

        async def put(self, epoch: str, entries: Mapping[str, DictionaryEntry]) -> None:
            await super().put(epoch, entries)
            if client.key in entries and deployment.bus.values[client.key] != gone:
                await deployment.bus.put(client.key, gone)
                for _ in range(20):  # turns of the loop in which the worker takes it in
                    await asyncio.sleep(0)

    statement = withdrawal(client.key, now)
    gone = post(deployment.manager, statement)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attestgate.manager.gateway.worker.Dictionary", Interrupted)
        async with at_work(deployment.worker()):
            await deployment.say(lease(client, now))
            await deployment.reported(client.key, "withdrawn", 2)
            assert await status(client) == 403
    assert {(r.state, r.sequence) for r in deployment.reports()} <= {("admitted", 1), ("withdrawn", 2)}


@threat(rows.ADMISSION_REPLAYED)
async def test_a_bucket_rolled_back_gains_nothing(deployment: GatewayDeployment) -> None:
    """A hostile operator restores the bucket, while the worker runs and over its restart."""
    server = MemoryServer()
    bus = server.connect()
    client = deployment.gate.client()
    now = int(time.time())

    async def take_reports() -> None:
        async for delivery in bus.consume("gateway-reports"):
            deployment.bus.published.append((delivery.subject, delivery.data))
            deployment.bus.heard.set()
            await delivery.done()

    manager = asyncio.create_task(take_reports())
    bucket = bus.bucket("admissions")
    async with at_work(deployment.worker(bus)):
        for statement in (host_lease(now), lease(client, now)):
            await bucket.put(statement.key, post(deployment.manager, statement))
        await deployment.reported(client.key, "admitted", 1)
        good_times = server.snapshot("admissions")
        gone = withdrawal(client.key, now)
        await bucket.put(gone.key, post(deployment.manager, gone))
        await deployment.reported(client.key, "withdrawn", 2)
        server.restore("admissions", good_times)
        await bucket.put(client.key, post(deployment.manager, lease(client, now)))
        await deployment.told("refused")
        assert await status(client) == 403
    async with at_work(deployment.worker(bus)):
        # The withdrawal ended no session, so it is no floor: a new worker believes the bus, until the lease's own end.
        contents = await until(deployment.gate.contents, lambda found: client.key in found)
        assert f'"until":{now + 300}' in contents[client.key]
    manager.cancel()
    await asyncio.wait([manager])


async def test_refused_requests_are_told_with_the_rule(working: GatewayDeployment) -> None:
    client = working.gate.client()
    now = int(time.time())
    await working.say(host_lease(now), lease(client, now, allow=["GET /only"]))
    await working.reported(client.key, "admitted", 1)
    for _ in range(3):
        assert await status(client) == 403
    assert client.issued is not None
    told = await working.told("request-refused", lambda data: data["verdict"] == "no rule allows it: GET /only")
    assert told["identity"] == client.issued.identity
    assert str(told["serial"]).lower() == client.issued.serial
    async with httpx.AsyncClient(verify=working.gate.context()) as stranger:
        await stranger.get(working.gate.url)
    told = await working.told("request-refused", lambda data: data["verdict"] == "no certificate")
    assert (told["identity"], told["serial"], told["times"]) == ("", "", 1)


@pytest.mark.parametrize("turns", range(6))
async def test_a_statement_that_comes_just_before_it_keeps_no_worker_from_ending(turns: int) -> None:
    desired = desired_state(300)
    pausing = asyncio.create_task(desired.pause(60))
    for _ in range(3):
        await asyncio.sleep(0)
    desired.wake()
    for _ in range(turns):
        await asyncio.sleep(0)
    ended = pausing.done()
    pausing.cancel()
    await asyncio.wait([pausing])
    assert pausing.cancelled() or ended
