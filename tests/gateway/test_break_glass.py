"""An operator's admission by hand: short, signed, loud, for one certificate; without a manager, without a bus."""

import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from attestgate.cli.main import app
from attestgate.manager.gateway.break_glass import BreakGlassFolder
from attestgate.manager.local.keyfiles import create_identity, read_identity
from attestgate.schemas.admission import ALL, Withdrawal, open_report
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.break_glass import BREAK_GLASS, BreakGlass, at_gateways, check_time, open_break_glass
from attestgate.schemas.enrolment import COMMAND
from attestgate.schemas.settings import BreakGlassSettings
from attestgate.schemas.signing import Purpose, Signer, TrustedKeys
from tests.support.gateway.deployment import OPERATOR, TRUST_DOMAIN, GatewayDeployment, at_work, new_signer, status
from tests.support.gateway.gate import Client, Gate, until, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

OPERATORS = TrustedKeys(TRUST_DOMAIN, {"operator": {OPERATOR.public}})
PLACE = at_gateways("sdn")


def said(client: Client, at: int, **more: Any) -> BreakGlass:
    assert client.issued is not None
    values: dict[str, Any] = {
        "operator": "ann",
        "serial": client.issued.serial,
        "certificate": client.issued.sha256,
        "identity": client.issued.identity,
        "allow": [ALL],
        "issued_at": at,
        "expires_at": at + 60,
        "reason": "the manager's disk is full",
    }
    return BreakGlass(**values | more)


def put(
    folder: Path, glass: BreakGlass, key: Signer = OPERATOR, place: str = PLACE, purpose: Purpose[Any] = BREAK_GLASS
) -> None:
    (folder / f"{len(list(folder.iterdir()))}.glass").write_bytes(pack(key.sign(purpose, place, glass)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "glass"
    path.mkdir()
    return path


def settings(folder: Path) -> BreakGlassSettings:
    return BreakGlassSettings(folder=folder, longest_s=120)


async def answers(client: Client, code: int) -> None:
    async def answer() -> int:
        return await status(client)

    await until(answer, lambda found: found == code)


@threat(rows.KEY_OPERATOR_GLASS)
@pytest.mark.stack
async def test_it_admits_without_a_manager_or_a_bus_and_ends_by_itself(
    deployment: GatewayDeployment, folder: Path
) -> None:
    deployment.bus.down = True
    client = deployment.gate.client()
    put(folder, said(client, int(time.time()), expires_at=int(time.time()) + 4))
    async with at_work(deployment.worker(break_glass=settings(folder))):
        await answers(client, 200)
        alarm = await deployment.told("break-glass")
        assert (alarm["operator"], alarm["reason"]) == ("ann", "the manager's disk is full")
        marks = (await client.http.get("/x")).json()["headers"]
        assert ["x-attestgate-marks", "break-glass"] in marks
        await answers(client, 403)
    assert [what for what, _ in deployment.events].count("break-glass") == 1


@pytest.mark.stack
async def test_a_file_taken_away_ends_it_and_a_restarted_nginx_gets_it_again(
    deployment: GatewayDeployment, folder: Path
) -> None:
    client = deployment.gate.client()
    async with at_work(deployment.worker(break_glass=settings(folder))):
        put(folder, said(client, int(time.time())))
        await answers(client, 200)
        await deployment.gate.nginx.kill()
        await deployment.gate.nginx.start()
        await answers(client, 200)
        (folder / "0.glass").unlink()
        await answers(client, 403)


@pytest.mark.stack
async def test_a_file_put_in_time_goes_on_where_the_lease_ends(deployment: GatewayDeployment, folder: Path) -> None:
    """At once, not when all of nginx's dictionary is compared next."""
    client = deployment.gate.client()
    async with at_work(deployment.worker(break_glass=settings(folder), reconcile_s=3600)):
        await deployment.admit(client, lease_s=4)
        put(folder, said(client, int(time.time())))
        await deployment.told("lapsed", lambda data: data["key"] == client.key)
        await answers(client, 200)


@threat(rows.KEY_OPERATOR_GLASS)
@pytest.mark.stack
async def test_it_does_not_overrule_a_withdrawal(deployment: GatewayDeployment, folder: Path) -> None:
    client = deployment.gate.client()
    now = int(time.time())
    async with at_work(deployment.worker(break_glass=settings(folder))):
        await deployment.admit(client)
        put(folder, said(client, now))
        await deployment.told("break-glass")
        await deployment.say(withdrawal(client.key, now, reason="operator.revoked"))
        await deployment.reported(client.key, "withdrawn", 2)
        await answers(client, 403)
    gateways = TrustedKeys(TRUST_DOMAIN, {"gateway": {deployment.identity.public}})
    told = [signed for _, data in deployment.bus.published for signed in open_report(data, "g1", gateways).glass]
    assert [OPERATORS.read(BREAK_GLASS, signed, PLACE) for signed in told] == [said(client, now)]


@threat(rows.KEY_OPERATOR_GLASS)
@pytest.mark.stack
async def test_a_withdrawal_outlives_every_file_that_was_signed_before_it(
    deployment: GatewayDeployment, folder: Path
) -> None:
    """Also where no lease could be alive any more: the worker has dropped it if it is not to remember files."""
    client, other = deployment.gate.client(), deployment.gate.client(app="a2")
    now = int(time.time())
    put(folder, said(client, now))
    gone = Withdrawal(
        key=client.key, issued_at=now - 30, until=now + 1, sequence=2, reason="operator.revoked", ends=None
    )
    await deployment.say(gone)
    worker = deployment.worker(break_glass=settings(folder), longest_lease_s=4, reconcile_s=1)
    async with at_work(worker):
        await deployment.reported(client.key, "withdrawn", 2)
        # A lapsed lease of another tells that time has passed over what was to be remembered of leases.
        await deployment.admit(other, lease_s=4)
        await deployment.told("lapsed", lambda data: data["key"] == other.key)
        put(folder, said(other, now))
        await answers(other, 200)
        assert await status(client) == 403


@threat(rows.KEY_OPERATOR_GLASS)
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"expires_at": 1_000_121}, "break-glass.expires_at"),
        ({"issued_at": 1_000_006, "expires_at": 1_000_020}, "break-glass.issued_at"),
        ({"issued_at": 999_000, "expires_at": 999_100}, "break-glass.expires_at"),
    ],
)
def test_what_it_may_not_be(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    client = Gate(tmp_path, time.time).client()
    data = pack(OPERATOR.sign(BREAK_GLASS, PLACE, said(client, 1_000_000, **change)))
    with pytest.raises(Refusal) as refusal:
        check_time(open_break_glass(data, OPERATORS, "sdn", 120), 1_000_000)
    assert refusal_code(refusal) == code


@pytest.mark.stack
async def test_what_is_not_an_operators_word_is_refused_and_told_once(
    deployment: GatewayDeployment, folder: Path
) -> None:
    client = deployment.gate.client()
    glass = said(client, int(time.time()))
    put(folder, glass, new_signer())
    put(folder, glass, purpose=COMMAND)
    put(folder, glass, place=at_gateways("others"))
    put(folder, glass, Signer("other.example", OPERATOR.key))
    (folder / "junk.glass").write_bytes(b"junk")
    (folder / "empty.glass").write_bytes(b"")
    async with at_work(deployment.worker(break_glass=settings(folder))):

        async def refused() -> list[str]:
            return [str(data["key"]) for what, data in deployment.events if what == "refused"]

        names = await until(refused, lambda found: len(found) == 6)
        assert sorted(names) == [
            "0.glass",
            "1.glass",
            "2.glass",
            "3.glass",
            "empty.glass",
            "junk.glass",
        ]
        await deployment.admit(other := deployment.gate.client(app="a2"))
        assert await status(other) == 200
        assert await status(client) == 403
        assert len(await refused()) == 6


def test_a_file_refused_for_its_time_is_judged_again_and_told_once(tmp_path: Path, folder: Path) -> None:
    client, told = Gate(tmp_path, time.time).client(), list[str]()
    glasses = BreakGlassFolder(
        settings(folder),
        OPERATORS,
        "sdn",
        lambda *_: told.append("admitted"),
        lambda _, refusal: told.append(code_of(refusal)),
        lambda _: False,
    )
    put(folder, said(client, 1_000_000))

    def at(second: int) -> bool:
        return client.key in glasses.entries(second)

    assert not at(1_000_000 - 3600) and not at(1_000_000 - 3599), "the clock is behind"
    assert at(1_000_000) and at(1_000_001), "it was set right"
    assert not at(1_000_000 + 3600), "it is ahead; that an admission has ended is no news"
    assert at(1_000_059)
    assert not at(1_000_002 - 3600), "what was accepted is stale as well"
    assert not at(1_000_060)
    assert told == ["break-glass.issued_at", "admitted", "break-glass.issued_at", "break-glass.expires_at"]


def code_of(refusal: Refusal) -> str:
    return refusal.reasons[0].code


def test_the_command_signs_what_a_gateway_takes(tmp_path: Path) -> None:
    client = Gate(tmp_path, time.time).client()
    assert client.issued is not None
    public = create_identity(tmp_path / "ann.pem")
    operator = {
        "profile": "development",
        "name": "ann",
        "identity": str(tmp_path / "ann.pem"),
        "trust_domain": TRUST_DOMAIN,
        "manager_identity": ["00" * 32],
        "bus": {"url": "nats://nowhere.invalid:1", "credentials": str(tmp_path / "none")},
    }
    (tmp_path / "operator.toml").write_text(tomli_w.dumps(operator))
    (tmp_path / "app.pem").write_text(client.issued.chain)
    out = tmp_path / "now.glass"
    arguments = ["gateway", "break-glass", str(tmp_path / "app.pem"), "--gateways", "sdn", "--for", "15m"]
    arguments += ["--reason", "because", "-o", str(out), "-O", str(tmp_path / "operator.toml"), "--allow", "read-only"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    trusted = TrustedKeys(TRUST_DOMAIN, {"operator": {public}})
    glass = open_break_glass(out.read_bytes(), trusted, "sdn", 3600)
    check_time(glass, int(time.time()))
    assert (glass.serial, glass.identity) == (client.issued.serial, client.issued.identity)
    assert glass.allow == ["GET,HEAD /**"] and glass.expires_at - glass.issued_at == 900
    assert read_identity(tmp_path / "ann.pem").public_key().public_bytes_raw() == public
