"""A real server whose operator may do what no credential of attestgate may: delete streams, and write them anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from attestgate.bus.auth.credentials import create
from attestgate.bus.auth.permissions import MANAGER, ROLES
from attestgate.bus.layout import LOG, TREE
from tests.support.bus.fixtures import join, server, trust
from tests.support.manager.fixtures import site, world

__all__ = ["join", "keys", "server", "site", "trust", "world"]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of a bus whose manager's account may also delete the log's stream and bucket."""
    folder = tmp_path_factory.mktemp("hostile") / "keys"
    manager = ROLES[MANAGER]
    more = tuple(f"STREAM.DELETE.{stream}" for stream in (LOG.name, TREE.stream))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROLES, MANAGER, dataclasses.replace(manager, calls=(*manager.calls, *more)))
        create(folder)
    return folder
