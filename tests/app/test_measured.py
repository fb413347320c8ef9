"""An application whose measured settings leave open where it connects, or what it runs, does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from attestgate.app_agent.main import run
from attestgate.app_agent.measured import load_for_application, program_of
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import AppSettings, BusSettings
from tests.support.manager.world import World


def written(world: World, folder: Path, **changes: str) -> Path:
    path = folder / "measured.toml"
    path.write_text(tomli_w.dumps({**world.measured.model_dump(exclude_defaults=True), **changes}))
    return path


def test_what_says_everything_is_taken(world: World, tmp_path: Path) -> None:
    assert load_for_application(written(world, tmp_path)) == world.measured


@pytest.mark.parametrize("key", ["gateway_ca", "gateway_name", "program"])
async def test_the_agent_does_not_start_with_one_left_open(world: World, tmp_path: Path, key: str) -> None:
    settings = AppSettings(
        profile="development",
        bus=BusSettings(url="nats://127.0.0.1:1", credentials=Path("none")),
        id="a1",
        measured=written(world, tmp_path, **{key: ""}),
        host="h1",
        volume=tmp_path,
    )
    with pytest.raises(Refusal, match=rf"^settings\.key: .*measured\.toml: {key}: "):
        await run(settings)


@pytest.mark.parametrize("ca", ["a file's name.pem", " ", "é"])
def test_a_ca_that_is_none_is_refused(world: World, tmp_path: Path, ca: str) -> None:
    with pytest.raises(Refusal, match=r"^settings\.key: .*: gateway_ca: "):
        load_for_application(written(world, tmp_path, gateway_ca=ca))


@pytest.mark.parametrize("program", ["no.such.module", "json"], ids=["no module", "no main"])
def test_a_program_that_is_none_is_refused(world: World, program: str) -> None:
    with pytest.raises(Refusal, match=r"^settings\.program: "):
        program_of(world.measured.model_copy(update={"program": program}))
