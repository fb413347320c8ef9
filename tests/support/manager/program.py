"""The program of the application under test: it stays for as long as it is admitted."""

from __future__ import annotations

from attestgate.app_agent.application import Application


async def main(application: Application) -> None:
    """Wait for the end of trust."""
    await application.ended.wait()
