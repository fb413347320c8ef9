"""What the worker has seen taken away stays away from the real nginx, whatever the bus, the disk or a kill does."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from attestgate.cli.main import app
from attestgate.manager.gateway import floors_writer
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.floors import Row
from attestgate.manager.gateway.floors_file import FloorsFile, FloorsNotWritten
from attestgate.manager.gateway.reports import Reporter
from attestgate.manager.gateway.worker import GatewayWorker
from attestgate.manager.local.keyfiles import create_identity, read_identity
from attestgate.schemas.admission import RefusedLease, Tenure, post, revoke_key
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.break_glass import BREAK_GLASS, BreakGlass, at_gateways
from attestgate.schemas.enrolment import COMMAND, Action, Command, RecheckNow, Revoke, SubjectKind, commands_of
from attestgate.schemas.in_force import digest_of
from attestgate.schemas.settings import BreakGlassSettings, OperatorSettings
from attestgate.schemas.signing import Signed, Signer
from tests.support.gateway.deployment import (
    HOST,
    OPERATOR,
    TRUST_DOMAIN,
    GatewayDeployment,
    at_work,
    new_signer,
    status,
)
from tests.support.gateway.gate import APP_SESSION, HOST_SESSION, Client, host_lease, lease, until, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack

LATER = "0f" * 16
APP_TENURE = Tenure(place="app.a1.h1", session=APP_SESSION, rank=1)
HOST_TENURE = Tenure(place="host.h1", session=HOST_SESSION, rank=1)


def revoke(
    sequence: int,
    kind: SubjectKind = "app",
    id: str = "a1",
    *,
    operator: Signer = OPERATOR,
    name: str = "ann",
    action: Action | None = None,
) -> Signed:
    """A Revoke that expired long ago."""
    command = Command(sequence=sequence, expires_at=1, action=action or Revoke(kind=kind, id=id, reason="stolen"))
    return operator.sign(COMMAND, commands_of(name), command)


async def post_revoke(deployment: GatewayDeployment, signed: Signed, kind: str = "app", id: str = "a1") -> None:
    await deployment.bus.put(revoke_key(kind, id, signed.signer), pack(signed))


async def confirmed(deployment: GatewayDeployment, signed: Signed) -> None:
    async def digests() -> list[bytes]:
        return [digest for report in deployment.whole_reports() for digest in report.revoked]

    await until(digests, lambda found: digest_of(pack(signed)) in found)


async def clock() -> float:
    return time.time()


async def refused(deployment: GatewayDeployment, key: str, code: str) -> RefusedLease:
    """What the managers are told of a refused lease."""

    async def found() -> list[RefusedLease]:
        every = [refused for report in deployment.whole_reports() for refused in report.refused]
        return [one for one in every if (one.key, one.code) == (key, code)]

    return (await until(found, bool))[-1]


def codes(deployment: GatewayDeployment) -> list[str]:
    return [cast(Any, data["reason"])["code"] for what, data in deployment.events if what == "refused"]


async def answers(client: Client, code: int) -> None:
    async def answer() -> int:
        return await status(client)

    await until(answer, lambda found: found == code)


async def all_seen(deployment: GatewayDeployment) -> None:
    """What the bus has shown so far has been read and applied: a certificate admitted after it is."""
    await deployment.admit(other := deployment.gate.client(app=f"b{len(deployment.gate.clients)}"), sequence=99)
    assert await status(other) == 200


@threat(rows.SESSION_RETURNS, rows.ADMISSION_REPLAYED)
async def test_a_superseded_session_does_not_come_back(deployment: GatewayDeployment) -> None:
    """Nor after its tombstone is forgotten, nor after a restart: the floors know the newer one."""
    now, old, new = int(time.time()), deployment.gate.client(), deployment.gate.client()
    async with at_work(deployment.worker()):
        await deployment.admit(old)
        await deployment.say(lease(new, now, rank=2, app_session=LATER))
        await deployment.reported(new.key, "admitted", 1)
        assert [await status(old), await status(new)] == [403, 200], "nobody had to withdraw the old one"
    newest = deployment.bus.values[new.key]
    async with at_work(deployment.worker()):
        await deployment.say(lease(old, now, sequence=5))
        back = await refused(deployment, old.key, "admission.rank")
        assert (back.floor_key, back.floor) == (new.key, newest)
        await all_seen(deployment)
        assert [await status(old), await status(new)] == [403, 200]


@threat(rows.SESSION_RETURNS, rows.ADMISSION_REPLAYED)
@pytest.mark.parametrize("kind", ["app", "host"])
async def test_a_session_that_was_ended_does_not_come_back(deployment: GatewayDeployment, kind: str) -> None:
    now, client = int(time.time()), deployment.gate.client()
    key, ends = (client.key, APP_TENURE) if kind == "app" else (HOST, HOST_TENURE)
    async with at_work(deployment.worker()):
        await deployment.admit(client)
        await deployment.withdraw(key, ends=ends)
        assert await status(client) == 403
    tombstone = deployment.bus.values.pop(key)
    async with at_work(deployment.worker()):
        again = lease(client, now, sequence=5) if kind == "app" else host_lease(now, sequence=5)
        await deployment.say(again)
        assert (await refused(deployment, key, "admission.ended")).floor == tombstone
        assert await status(client) == 403


@threat(rows.WORKERS_PARTED)
async def test_a_lease_below_a_floor_is_an_event_once_and_in_every_report(working: GatewayDeployment) -> None:
    now, old, new = int(time.time()), working.gate.client(), working.gate.client()
    await working.admit(new)
    await working.say(lease(new, now, sequence=2, rank=2, app_session=LATER))
    for sequence in (5, 6, 7):
        working.bus.published.clear()
        await working.say(lease(old, now, sequence=sequence))
        await refused(working, old.key, "admission.rank")
    assert codes(working).count("admission.rank") == 1


@threat(rows.ADMISSION_REPLAYED)
async def test_an_older_enrolment_is_refused_and_the_lease_that_is_held_runs_out(working: GatewayDeployment) -> None:
    now, client, other = int(time.time()), working.gate.client(), working.gate.client()
    await working.admit(client)
    await working.say(lease(other, now, enrolled=2))
    await working.reported(other.key, "admitted", 1)
    await working.say(lease(client, now, sequence=2))
    await refused(working, client.key, "admission.enrolled")
    assert await status(client) == 200
    await working.say(lease(client, now, sequence=3, enrolled=2))
    await working.reported(client.key, "admitted", 3)


@threat(rows.ADMISSION_REPLAYED)
async def test_a_replaced_policy_admits_nobody_after_the_length_of_a_lease(deployment: GatewayDeployment) -> None:
    async with at_work(deployment.worker(longest_lease_s=3)):
        client, other = deployment.gate.client(), deployment.gate.client(app="a2")
        await deployment.admit(client, lease_s=3)
        now = int(time.time())
        await deployment.say(lease(other, now, policy=2))
        await deployment.reported(other.key, "admitted", 1)
        await deployment.say(lease(client, now, sequence=2))
        await deployment.reported(client.key, "admitted", 2)
        await answers(client, 403)
        # Its own end may come up to a second before that of all leases by the older policy.
        await until(clock, lambda at: at >= now + 5)
        await deployment.say(host_lease(int(time.time()), sequence=3), lease(client, int(time.time()), sequence=3))
        await refused(deployment, client.key, "admission.policy")
        await refused(deployment, HOST, "admission.policy")
    async with at_work(deployment.worker(longest_lease_s=3)):
        deployment.bus.published.clear()
        await deployment.say(lease(client, int(time.time()), sequence=4))
        await refused(deployment, client.key, "admission.policy")


@threat(rows.REVOCATION_HIDDEN, rows.ADMISSION_REPLAYED)
@pytest.mark.parametrize("kind", ["app", "host"])
async def test_a_revoke_on_the_bus_cuts_and_ends_by_a_later_enrolment_alone(
    deployment: GatewayDeployment, kind: SubjectKind
) -> None:
    now, client = int(time.time()), deployment.gate.client()
    id, signed = ("a1", revoke(7)) if kind == "app" else ("h1", revoke(7, "host", "h1"))
    key = client.key if kind == "app" else HOST
    async with at_work(deployment.worker()):
        await deployment.admit(client)
        await post_revoke(deployment, signed, kind, id)
        await confirmed(deployment, signed)
        assert await status(client) == 403
        told = await deployment.told("blocked")
        assert (told["subject"], told["operator"], told["reason"]) == (f"{kind}.{id}", "ann", "stolen")
        assert (await deployment.told("withdrawn"))["reason"] == "admission.revoked"
        await deployment.bus.delete(revoke_key(kind, id, signed.signer))
    deployment.bus.values.clear()
    deployment.bus.published.clear()
    async with at_work(deployment.worker()):
        await confirmed(deployment, signed)
        await deployment.say(host_lease(now, sequence=2, enrolled=7), lease(client, now, sequence=2, enrolled=7))
        enclosed = await refused(deployment, key, "admission.revoked")
        assert unpack(Signed, enclosed.floor) == signed and enclosed.floor_key == revoke_key(kind, id, signed.signer)
        assert await status(client) == 403
        await deployment.say(host_lease(now, sequence=3, enrolled=8), lease(client, now, sequence=3, enrolled=8))
        await deployment.reported(key, "admitted", 3)
        await answers(client, 200)
        await post_revoke(deployment, signed, kind, id)
        await deployment.say(host_lease(now, sequence=4, enrolled=7), lease(client, now, sequence=4, enrolled=7))
        await all_seen_again(deployment)
        assert await status(client) == 200, "the older Revoke is over, and the older lease changes nothing"


async def all_seen_again(deployment: GatewayDeployment) -> None:
    """As `all_seen`, with the host as it was enrolled anew."""
    now, other = int(time.time()), deployment.gate.client(app="b9")
    await deployment.say(lease(other, now, enrolled=99))
    await deployment.reported(other.key, "admitted", 1)


@threat(rows.ADMISSION_FORGED)
async def test_a_revoke_of_the_wrong_key_place_or_kind_is_refused(working: GatewayDeployment) -> None:
    client = working.gate.client()
    await working.admit(client)
    recheck = revoke(7, action=RecheckNow(kind="app", id="a1"))
    for key, signed, code in (
        (revoke_key("app", "a2", OPERATOR.public), revoke(7), "revoke.key"),
        (revoke_key("app", "a1", OPERATOR.public), recheck, "revoke.action"),
        (revoke_key("app", "a1", OPERATOR.public), revoke(7, name="bob"), "signature.invalid"),
        (revoke_key("app", "a1", bytes(32)), revoke(7, operator=new_signer()), "signature.signer"),
    ):
        await working.bus.put(key, pack(signed))
        await until(codes_of(working), partial(ends_with, code))
    await working.bus.put("revoke.app.a1.00", b"garbage")
    await working.told("refused", lambda data: data["key"] == "revoke.app.a1.00")
    await all_seen(working)
    assert await status(client) == 200


@threat(rows.KEY_OPERATOR)
async def test_an_operator_who_was_taken_out_of_the_settings_no_longer_blocks(deployment: GatewayDeployment) -> None:
    now, client, gone = int(time.time()), deployment.gate.client(), new_signer()
    both = [
        OperatorSettings(name="ann", role="operator", identity=OPERATOR.public.hex()),
        OperatorSettings(name="eve", role="operator", identity=gone.public.hex()),
    ]
    signed = revoke(7, operator=gone, name="eve")
    async with at_work(deployment.worker(operators=both)):
        await post_revoke(deployment, signed)
        await confirmed(deployment, signed)
    async with at_work(deployment.worker()):
        await deployment.admit(client)
        assert await status(client) == 200
    async with at_work(deployment.worker(operators=both)):
        await deployment.say(lease(client, now, sequence=2))
        await refused(deployment, client.key, "admission.revoked")
        assert await status(client) == 403, "it was kept, and counts with its key"


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    return tmp_path / "state" / "blocks"


@threat(rows.REVOCATION_HIDDEN, rows.MANAGERS_UNREACHED)
async def test_a_file_cuts_without_a_manager_or_a_bus(deployment: GatewayDeployment, blocks: Path) -> None:
    """Also what a worker before this one has put into nginx, which no lease table holds until the bus answers."""
    client, other = deployment.gate.client(), deployment.gate.client(app="a2")
    async with at_work(deployment.worker()):
        await deployment.admit(client, other)
    deployment.bus.down = True
    async with at_work(deployment.worker(block_folder=blocks)):
        await until(is_folder(blocks), bool)
        assert [await status(client), await status(other)] == [200, 200]
        (blocks / "1.revoke").write_bytes(pack(revoke(7)))
        await answers(client, 403)
        assert await status(other) == 200
        (blocks / "1.revoke").unlink()
    async with at_work(deployment.worker(block_folder=blocks)):
        deployment.bus.down = False
        await confirmed(deployment, revoke(7))
        await refused(deployment, client.key, "admission.revoked")
        await deployment.reported(other.key, "admitted", 1)
        assert [await status(client), await status(other)] == [403, 200]


def is_folder(path: Path) -> Any:
    async def found() -> bool:
        return path.is_dir()

    return found


async def test_files_that_are_no_revokes_are_told_once(deployment: GatewayDeployment, blocks: Path) -> None:
    blocks.mkdir(parents=True)
    (blocks / "garbage.revoke").write_bytes(b"garbage")
    (blocks / "stranger.revoke").write_bytes(pack(revoke(7, operator=new_signer())))
    (blocks / "folder.revoke").mkdir()
    (blocks / "other.txt").write_bytes(pack(revoke(7)))
    client = deployment.gate.client()
    async with at_work(deployment.worker(block_folder=blocks)):
        await deployment.admit(client)
        await asyncio.sleep(2.5)
        assert sorted(codes(deployment)) == ["file.access", "message.encoding", "signature.signer"]
        assert await status(client) == 200
        (blocks / "garbage.revoke").write_bytes(pack(revoke(7)))
        await answers(client, 403)


async def test_a_file_older_than_the_enrolment_says_so(deployment: GatewayDeployment, blocks: Path) -> None:
    client = deployment.gate.client()
    async with at_work(deployment.worker(block_folder=blocks)):
        await deployment.admit(client)
        await deployment.say(lease(client, int(time.time()), sequence=2, enrolled=9))
        await deployment.reported(client.key, "admitted", 2)
        (blocks / "1.revoke").write_bytes(pack(revoke(8)))
        told = await deployment.told("refused")
        assert told["key"] == "1.revoke" and cast(Any, told["reason"])["code"] == "revoke.older"
        assert await status(client) == 200


@threat(rows.MANAGERS_UNREACHED)
async def test_the_block_command_writes_what_the_gateway_reads(
    deployment: GatewayDeployment, blocks: Path, tmp_path: Path
) -> None:
    create_identity(tmp_path / "ann.pem")
    key = Signer(TRUST_DOMAIN, read_identity(tmp_path / "ann.pem"))
    operator = tmp_path / "operator.toml"
    operator.write_text(
        f'name = "ann"\nidentity = "{tmp_path / "ann.pem"}"\ntrust_domain = "{TRUST_DOMAIN}"\n'
        f'manager_identity = ["{"00" * 32}"]\n[bus]\nurl = "nats://127.0.0.1:1"\ncredentials = "none"\n',
        encoding="utf-8",
    )
    ann = [OperatorSettings(name="ann", role="operator", identity=key.public.hex())]
    client = deployment.gate.client()
    async with at_work(deployment.worker(block_folder=blocks, operators=ann)):
        await deployment.admit(client)
        block = ["gateway", "block", "app", "a1", "--reason", "stolen", "-O", str(operator)]
        ran = CliRunner().invoke(app, [*block, "--folder", str(blocks)])
        assert ran.exit_code == 0 and "app a1 is cut" in ran.output
        await answers(client, 403)
        assert (await deployment.told("blocked"))["reason"] == "stolen"
    for both in ([], ["-o", str(tmp_path / "x"), "--folder", str(blocks)]):
        assert refusal_of([*block, *both]) == "cli.argument"
    assert refusal_of([*block[:3], "A1", *block[4:], "-o", str(tmp_path / "x.revoke")]) == "cli.argument"
    assert not (tmp_path / "x.revoke").exists()


def refusal_of(arguments: list[str]) -> str:
    ran = CliRunner().invoke(app, arguments)
    assert isinstance(ran.exception, Refusal)
    return ran.exception.reasons[0].code


@threat(rows.MANAGERS_UNREACHED, rows.KEY_OPERATOR_GLASS)
async def test_break_glass_loses_against_a_revoke_of_its_application_or_host(
    deployment: GatewayDeployment, blocks: Path, tmp_path: Path
) -> None:
    deployment.bus.down = True
    (glass := tmp_path / "glass").mkdir()
    now, clients = int(time.time()), [deployment.gate.client(), deployment.gate.client(app="a2")]
    for client in clients:
        assert client.issued is not None
        said = BreakGlass(
            operator="ann",
            serial=client.issued.serial,
            certificate=client.issued.sha256,
            identity=client.issued.identity,
            allow=["* /**"],
            issued_at=now,
            expires_at=now + 100,
            reason="no manager",
        )
        signed = OPERATOR.sign(BREAK_GLASS, at_gateways("sdn"), said)
        (glass / f"{client.issued.serial}.glass").write_bytes(pack(signed))
    settings = BreakGlassSettings(folder=glass, longest_s=120)
    async with at_work(deployment.worker(block_folder=blocks, break_glass=settings)):
        for client in clients:
            await answers(client, 200)
        (blocks / "1.revoke").write_bytes(pack(revoke(7)))
        await answers(clients[0], 403)
        assert await status(clients[1]) == 200
        (blocks / "2.revoke").write_bytes(pack(revoke(7, "host", "h1")))
        await answers(clients[1], 403)
        await until(codes_of(deployment), lambda found: found == ["break-glass.revoked"] * 2)
    async with at_work(deployment.worker(break_glass=settings)):
        await until(codes_of(deployment), lambda found: found == ["break-glass.revoked"] * 4)
        assert [await status(client) for client in clients] == [403, 403]
        assert [what for what, _ in deployment.events].count("break-glass") == 2, "it takes no effect again"


def ends_with(code: str, found: list[str]) -> bool:
    return found[-1:] == [code]


def codes_of(deployment: GatewayDeployment) -> Any:
    async def found() -> list[str]:
        return codes(deployment)

    return found


class Killed(Exception):
    """The worker's process is no more."""


@asynccontextmanager
async def killed(worker: GatewayWorker) -> AsyncIterator[None]:
    """The worker runs until it is killed."""
    task = asyncio.create_task(worker.run())
    try:
        yield
        async with asyncio.timeout(15):
            await asyncio.wait([task])
    finally:
        task.cancel()
        await asyncio.wait([task])
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Killed)


def kill(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """From now on a worker is killed at a named point."""

    def before(*_: object) -> int:
        raise Killed

    def after(self: FloorsFile, rows: list[Row]) -> int:
        whole(self, rows)
        raise Killed

    async def in_nginx(self: Dictionary, *arguments: Any) -> None:
        await removed(self, *arguments)
        raise Killed

    whole, removed = FloorsFile.write, Dictionary.remove
    if point == "before the disk":
        monkeypatch.setattr(FloorsFile, "write", before)
    elif point == "between disk and nginx":
        monkeypatch.setattr(FloorsFile, "write", after)
    elif point == "between nginx and the confirmation":
        monkeypatch.setattr(Dictionary, "remove", in_nginx)
    else:
        monkeypatch.setattr(Reporter, "_next_report", before)


POINTS = ["before the disk", "between disk and nginx", "between nginx and the confirmation", "at the confirmation"]


@threat(rows.GATEWAY_KILLED)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("what", ["withdrawal", "revoke"])
async def test_a_worker_that_is_killed_has_confirmed_nothing_that_it_does_not_know(
    deployment: GatewayDeployment, monkeypatch: pytest.MonkeyPatch, point: str, what: str
) -> None:
    """The bus shows its successor the older state: only what never reached the disk, nor a report, is forgotten."""
    now, client = int(time.time()), deployment.gate.client()
    async with at_work(deployment.worker()):
        await deployment.admit(client)
    older = dict(deployment.bus.values)
    async with killed(deployment.worker()):
        await deployment.admit(deployment.gate.client(app="a2"), sequence=2)
        deployment.bus.published.clear()
        kill(monkeypatch, point)
        if what == "withdrawal":
            await deployment.say(withdrawal(client.key, now, sequence=3, ends=APP_TENURE))
        else:
            await post_revoke(deployment, revoke(7))
    monkeypatch.undo()
    told = deployment.whole_reports()
    assert not any(item.state == "withdrawn" for report in told for item in report.applied)
    assert not any(report.revoked for report in told)
    deployment.bus.values = older
    deployment.bus.published.clear()
    async with at_work(deployment.worker()):
        await all_seen(deployment)
        assert await status(client) == (200 if point == "before the disk" else 403)
        if what == "withdrawal":
            await deployment.say(withdrawal(client.key, now, sequence=3, ends=APP_TENURE))
            await deployment.reported(client.key, "withdrawn", 3)
        else:
            await post_revoke(deployment, revoke(7))
            await confirmed(deployment, revoke(7))
        assert await status(client) == 403


class Disk:
    """The disk of the floors: `full`, or `hangs` until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.hangs = threading.Event()
        self.hangs.set()
        write = FloorsFile.write

        def through(file: FloorsFile, rows: list[Row]) -> int:
            self.hangs.wait()
            if self.full:
                raise FloorsNotWritten("database or disk is full")
            return write(file, rows)

        monkeypatch.setattr(FloorsFile, "write", through)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(monkeypatch)
    yield made
    made.hangs.set()


@threat(rows.GATEWAY_DISK)
@pytest.mark.parametrize("trouble", ["full", "hangs"])
async def test_a_disk_in_trouble_admits_nobody_new_and_holds_up_nothing_that_takes_away(
    working: GatewayDeployment, disk: Disk, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(floors_writer, "PATIENCE_S", 0.2)
    now, renewed, cut, blocked = (int(time.time()), *(working.gate.client(app=f"a{i}") for i in range(1, 4)))
    await working.admit(renewed, cut, blocked)
    working.bus.published.clear()
    if trouble == "full":
        disk.full = True
    else:
        disk.hangs.clear()
    fresh = working.gate.client(app="a4")
    await working.say(lease(fresh, now))
    alarm = await working.told("floors-unwritten")
    assert alarm["rows"] == 2, "its place, and the enrolment of its application"
    await working.say(lease(renewed, now, sequence=2), host_lease(now, sequence=2))
    await working.reported(renewed.key, "admitted", 2)
    await working.say(withdrawal(cut.key, now, ends=APP_TENURE.model_copy(update={"place": "app.a2.h1"})))
    await post_revoke(working, revoke(7, id="a3"), id="a3")
    await answers(cut, 403)
    await answers(blocked, 403)
    assert [await status(client) for client in (renewed, fresh)] == [200, 403]
    said = working.whole_reports()
    assert not any(report.revoked for report in said)
    assert {item.key for report in said for item in report.applied} <= {renewed.key, HOST}
    before = max(report.floors for report in said)
    disk.full = False
    disk.hangs.set()
    await working.told("floors-written")
    await working.reported(fresh.key, "admitted", 1)
    await working.reported(cut.key, "withdrawn", 2)
    await confirmed(working, revoke(7, id="a3"))
    assert [await status(client) for client in (renewed, fresh, cut, blocked)] == [200, 200, 403, 403]
    assert working.whole_reports()[-1].floors == before + 4
    assert [what for what, _ in working.events].count("floors-unwritten") == 1


@threat(rows.FLOORS_LOST)
async def test_a_worker_without_its_floors_does_not_start(deployment: GatewayDeployment) -> None:
    deployment.floors.rename(deployment.floors.with_name("elsewhere"))
    with pytest.raises(Refusal) as refusal:
        await deployment.worker().run()
    assert refusal_code(refusal) == "floors.missing"
    assert not deployment.floors.exists()
    deployment.floors.write_bytes(b"garbage")
    with pytest.raises(Refusal) as refusal:
        await deployment.worker().run()
    assert refusal_code(refusal) == "floors.damaged"


@threat(rows.FLOORS_LOST)
async def test_an_older_copy_shows_in_the_first_report(deployment: GatewayDeployment) -> None:
    """Before anything is confirmed by it, and before new changes make up for what it lacks."""
    copy = deployment.floors.with_name("copy")
    async with at_work(deployment.worker()):
        await deployment.admit(deployment.gate.client())
        shutil.copy(deployment.floors, copy)
        await deployment.admit(deployment.gate.client(app="a2"), sequence=2)
    highest = max(report.floors for report in deployment.whole_reports())
    shutil.copy(copy, deployment.floors)
    deployment.bus.published.clear()
    async with at_work(deployment.worker()):
        await deployment.admit(*(deployment.gate.client(app=f"a{i}") for i in range(3, 9)), sequence=3)
    first, *later = deployment.whole_reports()
    assert (first.floors, first.applied, first.revoked) == (highest - 2, [], [])
    assert max(report.floors for report in later) > highest


@threat(rows.FLOORS_LOST)
async def test_the_counter_is_what_is_on_disk(working: GatewayDeployment) -> None:
    await working.admit(working.gate.client())
    first, *_, last = working.whole_reports()
    assert first.floors == 0 and last.floors == FloorsFile(working.floors).counter == 5


@threat(rows.GATEWAY_KILLED)
async def test_a_lost_nginx_is_no_confirmation(deployment: GatewayDeployment) -> None:
    """What was revoked is confirmed again for each memory of nginx, once all in it has been compared."""
    client = deployment.gate.client()
    async with at_work(deployment.worker()):
        await deployment.admit(client)
        await post_revoke(deployment, revoke(7))
        await confirmed(deployment, revoke(7))
        deployment.bus.published.clear()
        await deployment.gate.nginx.kill()
        await deployment.gate.nginx.start()
        await confirmed(deployment, revoke(7))
        epoch = (await epoch_of(deployment)).epoch
        assert {report.epoch for report in deployment.whole_reports() if report.revoked} == {epoch}
        assert await status(client) == 403


async def epoch_of(deployment: GatewayDeployment) -> Any:
    async with Dictionary(deployment.gate.config.admin) as dictionary:
        return await dictionary.health()


@threat(rows.ADMISSION_REPLAYED)
async def test_statements_that_are_put_back_whole_change_nothing(deployment: GatewayDeployment) -> None:
    """A whole older bucket, shown to a worker that was restarted: each kind of floor holds."""
    now = int(time.time())
    ended, newer, held = (deployment.gate.client(app=f"a{i}") for i in range(1, 4))
    async with at_work(deployment.worker()):
        await deployment.admit(ended, newer, held)
        older = dict(deployment.bus.values)
        await deployment.withdraw(ended.key, ends=APP_TENURE)
        place = Tenure(place="app.a2.h1", session=LATER, rank=2)
        await deployment.withdraw(newer.key, ends=place)
        await post_revoke(deployment, revoke(7, id="a3"), id="a3")
        await confirmed(deployment, revoke(7, id="a3"))
    deployment.bus.values = {**older, held.key: post(deployment.manager, lease(held, now, sequence=2))}
    async with at_work(deployment.worker()):
        for client, code in ((ended, "ended"), (newer, "rank"), (held, "revoked")):
            await refused(deployment, client.key, f"admission.{code}")
        await all_seen(deployment)
        assert [await status(client) for client in (ended, newer, held)] == [403] * 3
