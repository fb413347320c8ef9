"""The application under test: it keeps what it was given, and stays for as long as it is admitted."""

from __future__ import annotations

from attestgate.app_agent.application import Application

started: list[Application] = []


async def main(application: Application) -> None:
    """Wait for the end of trust."""
    started.append(application)
    await application.ended.wait()
