"""An application's agent on the bus in memory, with a program of the test's choice."""

from __future__ import annotations

from pathlib import Path

from attestgate.app_agent.application import Application
from attestgate.app_agent.main import AppAgent
from attestgate.bus.agent.link import Link
from attestgate.schemas.settings import AppSettings, BusSettings
from tests.support.app import program
from tests.support.manager.harness import Agent, Deployment
from tests.support.manager.world import APP_ENCLAVE


async def start(
    site: Deployment, name: str = "tests.support.app.program", *, accept_manager_key: bool = False
) -> Agent:
    """Start application a1 on host h1, with this module as its program."""
    settings = AppSettings(
        profile="development",
        bus=BusSettings(url="memory", credentials=Path("none")),
        id="a1",
        measured=Path("none"),
        retry_s=1,
        host="h1",
        volume=site.volume,
    )
    bus = site.wire.connect()
    link = Link(bus, "app", "a1")
    await link.listen()
    measured = site.world.measured.model_copy(update={"program": name, "accept_manager_key": accept_manager_key})
    agent = AppAgent(site.world.enclave("machine-a", APP_ENCLAVE), link, settings, measured)
    return site._agent(agent.run(), bus)


def running() -> Application:
    """The application that was started last."""
    return program.started[-1]
