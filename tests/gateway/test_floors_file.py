"""The file of a gateway's floors: whole or not at all, made once by hand, carried to another gateway."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from attestgate.cli.main import app
from attestgate.manager.gateway.floors import EnrolledFloor, Floors, PlaceFloor, Row, Source
from attestgate.manager.gateway.floors_export import export_floors, import_floors, open_export
from attestgate.manager.gateway.floors_file import FloorsFile, FloorsNotWritten, create
from attestgate.manager.local.keyfiles import create_identity, read_identity
from attestgate.schemas.admission import HostLease, Lease, post
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.floors import ExportFile
from attestgate.schemas.signing import Signer, TrustedKeys
from tests.support.gateway.deployment import TRUST_DOMAIN, new_signer
from tests.support.gateway.statements import APP_TENURE, HOST, host, lease, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat


def some_rows(rank: int = 1) -> list[Row]:
    floors = Floors(operators=[], longest_lease_s=60)
    for statement in (lease(rank=rank), host(rank=rank)):
        floors.take(statement, b"signed", 100, 0.0)
    return list(floors.rows())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "state" / "floors")
    return tmp_path / "state" / "floors"


def refused(path: Path) -> str:
    with pytest.raises(Refusal) as refusal:
        FloorsFile(path).rows()
    assert str(path) in str(refusal.value) and "gateway floors new" in str(refusal.value)
    return refusal_code(refusal)


def test_what_was_written_is_read_and_counted(path: Path) -> None:
    file = FloorsFile(path)
    assert file.rows() == [] and file.counter == 0
    rows = some_rows()
    assert file.write(rows) == 5 == file.counter
    assert file.write([rows[0]]) == 6, "each change counts"
    again = FloorsFile(path)
    assert again.counter == 6 and {row.name: row for row in again.rows()} == {row.name: row for row in rows}
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_subject_costs_on_disk(path: Path) -> None:
    """docs/gateway.md: about 1 KB for a host and 2 KB for an application on one host."""
    signer, floors = new_signer(), Floors(operators=[], longest_lease_s=60)
    for kind, least, most in (("host", 700, 1200), ("app", 1400, 2400)):
        file, before = FloorsFile(path), path.stat().st_size
        rows = [row for i in range(1000, 2000) for row in floors.take(*posted(signer, kind, i), 100, 0.0)]
        file.write(rows)
        assert least < (path.stat().st_size - before) / 1000 < most


def posted(signer: Signer, kind: str, number: int) -> tuple[Lease | HostLease, bytes]:
    """A lease, and how a manager posts it."""
    order = {"rank": 1_800_000_000_000_000 + number, "enrolled": 1_700_000_000_000_000 + number}
    name, session = f"host-{number}", f"{number:032x}"
    one: Lease | HostLease = host(host=name, host_session=session, **order)
    if kind == "app":
        app = f"application-{number}"
        identity = f"spiffe://sdn.example.org/host/{name}/app/{app}"
        serial = f"7f{number:030x}"
        one = lease(host=name, app=app, identity=identity, serial=serial, app_session=session, **order)
    return one, post(signer, one)


@threat(rows.FLOORS_LOST)
def test_no_file_is_made_but_by_hand_and_none_is_replaced(tmp_path: Path, path: Path) -> None:
    assert refused(tmp_path / "none") == "floors.missing"
    assert not (tmp_path / "none").exists()
    FloorsFile(path).write(some_rows())
    with pytest.raises(Refusal) as refusal:
        create(path)
    assert refusal_code(refusal) == "floors.exists"
    assert len(FloorsFile(path).rows()) == 5
    assert [entry.name for entry in path.parent.iterdir()] == ["floors"]


def test_a_file_cannot_be_made_where_there_is_no_folder_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal) as refusal:
        create(tmp_path / "file" / "floors")
    assert refusal_code(refusal) == "file.access"


@threat(rows.FLOORS_LOST)
def test_a_damaged_file_is_refused(path: Path) -> None:
    FloorsFile(path).write(some_rows())
    whole = path.read_bytes()
    for data in (b"", b"garbage" * 1000, whole[:-4096], whole.replace(b"signed", b"Signed", 1)):
        path.write_bytes(data)
        assert refused(path) == "floors.damaged"
    path.write_bytes(whole)
    assert len(FloorsFile(path).rows()) == 5


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE floors SET row = x'c0'",
        "PRAGMA user_version = 2",
        "DELETE FROM counter",
        "UPDATE counter SET changes = 'many'",
        "DROP TABLE floors",
    ],
)
def test_a_file_that_this_worker_has_not_written_is_refused(path: Path, statement: str) -> None:
    FloorsFile(path).write(some_rows())
    with closing(sqlite3.connect(path)) as file:
        file.execute(statement)
        file.commit()
    assert refused(path) == "floors.damaged"


def test_a_full_disk_changes_nothing_and_the_next_write_may_succeed(path: Path) -> None:
    file, rows = FloorsFile(path), some_rows()
    file.write(rows[:1])
    file._file.execute("PRAGMA max_page_count = 1")
    big = [
        EnrolledFloor(subject=f"app.b{i}", enrolled=1, source=Source(key=HOST, value=bytes(4000))) for i in range(20)
    ]
    with pytest.raises(FloorsNotWritten, match="full"):
        file.write([*rows[1:], *big])
    assert file.counter == 1 and FloorsFile(path).rows() == rows[:1]
    file._file.execute("PRAGMA max_page_count = 1000")
    assert file.write([*rows[1:], *big]) == 25
    assert len(FloorsFile(path).rows()) == 25


def test_a_file_that_another_process_has_written_is_not_written_over(path: Path) -> None:
    one, other = FloorsFile(path), FloorsFile(path)
    other.write(some_rows(rank=7))
    with pytest.raises(FloorsNotWritten, match="another process"):
        one.write(some_rows())
    assert one.counter == 0
    (place, *_) = [row for row in FloorsFile(path).rows() if isinstance(row, PlaceFloor)]
    assert place.rank == 7


def test_an_export_carries_every_floor_to_another_gateway(tmp_path: Path, path: Path) -> None:
    one, other, identity = FloorsFile(path), tmp_path / "other", new_signer()
    one.write(some_rows(rank=5))
    create(other)
    own = FloorsFile(other)
    ahead = Floors(operators=[], longest_lease_s=60)
    ahead.take(withdrawal(ends=APP_TENURE.model_copy(update={"rank": 9})), b"signed", 100, 0.0)
    own.write(list(ahead.rows()))
    said, rows = open_export(export_floors(one, "g1", identity, 100), trusting(identity))
    assert (said.gateway, said.floors, said.at, len(rows)) == ("g1", 5, 100, 5)
    assert import_floors(own, rows) == 4, "its own place of the application is higher"
    assert import_floors(own, rows) == 0
    places = {row.place: row for row in FloorsFile(other).rows() if isinstance(row, PlaceFloor)}
    assert (places["app.a1.h1"].rank, places["app.a1.h1"].ended, places["host.h1"].rank) == (9, True, 5)
    assert FloorsFile(other).counter == 5


def trusting(identity: Signer) -> TrustedKeys:
    return TrustedKeys(TRUST_DOMAIN, {"gateway": {identity.public}})


def test_an_export_is_believed_for_its_signature_alone(path: Path) -> None:
    file, identity = FloorsFile(path), new_signer()
    file.write(some_rows())
    data = export_floors(file, "g1", identity, 100)
    held = unpack(ExportFile, data)
    for changed, code in (
        (held.model_copy(update={"rows": held.rows[:-1]}), "floors.export"),
        (held.model_copy(update={"gateway": "g2"}), "signature.invalid"),
    ):
        with pytest.raises(Refusal) as refusal:
            open_export(pack(changed), trusting(identity))
        assert refusal_code(refusal) == code
    with pytest.raises(Refusal) as refusal:
        open_export(data, trusting(new_signer()))
    assert refusal_code(refusal) == "signature.signer"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Two gateways' settings files, g1.toml and g2.toml."""
    for name in ("g1", "g2"):
        create_identity(tmp_path / f"{name}.pem")
        table = {
            "profile": "development",
            "id": name,
            "gateway_set": "sdn",
            "identity": str(tmp_path / f"{name}.pem"),
            "trust_domain": TRUST_DOMAIN,
            "manager_identity": ["00" * 32],
            "operators": [{"name": "ann", "role": "operator", "identity": "01" * 32}],
            "floors": str(tmp_path / name / "floors"),
            "nginx_socket": str(tmp_path / name / "nginx" / "admin.sock"),
            "bus": {"url": "nats://127.0.0.1:1", "credentials": str(tmp_path / "none")},
        }
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    return tmp_path


def test_the_commands(settings: Path) -> None:
    def run(*arguments: object) -> str:
        ran = CliRunner().invoke(app, ["gateway", "floors", *map(str, arguments)])
        if ran.exception is not None and not isinstance(ran.exception, SystemExit):
            raise ran.exception
        return ran.output

    one, other, out = settings / "g1.toml", settings / "g2.toml", settings / "g1.floors"
    for file in (one, other):
        assert "no floors yet" in run("new", "-s", file)
    with pytest.raises(Refusal) as refusal:
        run("new", "-s", one)
    assert refusal_code(refusal) == "floors.exists"
    FloorsFile(settings / "g1" / "floors").write(some_rows())
    assert "the floors of g1 after 5 changes" in run("export", "-s", one, "-o", out)
    key = Signer(TRUST_DOMAIN, read_identity(settings / "g1.pem")).public.hex()
    assert "raised 5 of 5 floors" in run("import", out, "-s", other, "--from-identity", key)
    assert "raised 0 of 5 floors" in run("import", out, "-s", other, "--from-identity", key)
    for bad, code in (("00" * 32, "signature.signer"), ("abc", "cli.argument")):
        with pytest.raises(Refusal) as refusal:
            run("import", out, "-s", other, "--from-identity", bad)
        assert refusal_code(refusal) == code
