"""What `attestgate doctor` tries of a credential: as the table says, without a trace, and a difference is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from attestgate.bus import layout
from attestgate.bus.auth import accounts
from attestgate.bus.auth.credentials import create, issue, load
from attestgate.bus.auth.permissions import MANAGER, ROLES
from attestgate.bus.client.accounts import tell
from attestgate.bus.client.rights import try_rights
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.manager.diagnosis import doctor
from attestgate.schemas.settings import BusSettings
from tests.support.bus.everything import name_of
from tests.support.bus.fixtures import Join


@pytest.mark.stack
async def test_every_role_may_what_its_table_says_and_trying_leaves_no_trace(
    join: Join, server: EmbeddedServer, keys: Path, tmp_path: Path
) -> None:
    manager = await join(MANAGER, "m")

    async def stored() -> list[int]:
        names = [*layout.STREAMS, *(bucket.stream for bucket in layout.BUCKETS.values())]
        return [(await manager.jetstream.stream_info(name)).state.last_seq for name in names]

    before = await stored()
    for role in ROLES:
        path = tmp_path / f"{role}.creds"
        issue(keys, role, name_of(role, "me"), path)
        found = await try_rights(server.url, path)
        assert (found.missing, found.excess) == ([], []), role
        assert found.tried > 25
    assert await stored() == before


@pytest.mark.stack
async def test_a_server_with_other_accounts_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's accounts were made when a gateway's credential could do more, and a host's less."""
    gateway, host = ROLES["gateway"], ROLES["host"]
    other = {
        "gateway": dataclasses.replace(gateway, publish=(*gateway.publish, "attest.v1.in.host.*.hello")),
        "host": dataclasses.replace(host, subscribe=()),
    }
    with monkeypatch.context() as patch:
        patch.setattr("attestgate.bus.auth.credentials.ROLES", {**ROLES, **other})
        create(tmp_path / "keys")
    async with EmbeddedServer(tmp_path / "server", load(tmp_path / "keys")) as server:
        for role in other:
            path = tmp_path / f"{role}.creds"
            issue(tmp_path / "keys", role, "g1", path)
            taken, found = await doctor.bus(BusSettings(url=server.url, credentials=path), role)
            assert taken.good and not found.good
            if role == "gateway":
                assert "may publish attest.v1.in.host.g1.hello; may publish attest.v1.in.host.another" in found.found
                assert found.action.startswith("attestgate keys upgrade FOLDER") and "new bus keys" in found.action
            else:
                assert "may not subscribe attest.v1.out.host.g1.>" in found.found
                assert found.action.startswith("attestgate keys upgrade FOLDER")
        accounts.upgrade(tmp_path / "keys")
        assert [told.problem for told in await tell(server.url, tmp_path / "keys")] == [None]
        for role in other:
            settings = BusSettings(url=server.url, credentials=tmp_path / f"{role}.creds")
            assert [finding.good for finding in await doctor.bus(settings, role)] == [True, True]
