"""Another small SDN application: it only reads, and lists the switches that the controller has.

It writes the list to its status file, as JSON lines, whenever the list or the gateway's answer changes.
"""

from __future__ import annotations

import asyncio
import json
import time

import httpx

from attestgate.app_agent.application import Application

EVERY_S = 0.5


async def main(application: Application) -> None:
    """Read the switches until trust ends."""
    told: tuple[int, str] | None = None
    async with application.client() as http:
        while True:
            try:
                answer = await http.get("/switches")
                found = (answer.status_code, answer.text[:500])
            except httpx.HTTPError as error:
                found = (0, type(error).__name__)
            if found != told:
                _tell(application, *found)
                told = found
            await asyncio.sleep(EVERY_S)


def _tell(application: Application, status: int, answer: str) -> None:
    line = {"at": time.time(), "what": "read switches", "identity": application.identity}
    if application.status_file is not None:
        with application.status_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"status": status, "answer": answer}) + "\n")
