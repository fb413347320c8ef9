"""Application a1 with a program that keeps what it was given."""

from __future__ import annotations

from attestgate.app_agent.application import Application
from tests.support.app import program
from tests.support.manager.deployment import Agent, Deployment


async def start(
    site: Deployment, name: str = "tests.support.app.program", *, accept_manager_key: bool = False
) -> Agent:
    """Start application a1 on host h1, with this module as its program."""
    return await site.app(program=name, accept_manager_key=accept_manager_key)


def running() -> Application:
    """The application that was started last."""
    return program.started[-1]
