"""A small SDN application: adds a flow at the controller, then watches the switch over one kept-alive connection.

It writes what it sees to its status file as JSON lines, one for each change.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import httpx

from attestgate.app_agent.application import Application

SWITCH = "s1"
FLOW = {"priority": 100, "match": {"in_port": "1"}, "actions": ["output:2"]}
EVERY_S = 0.02
AGAIN_S = 0.25
"""After a refusal or a lost connection: the gateway takes only so many new ones a second from one address."""
REFUSED = 403


async def main(application: Application) -> None:
    """Add a flow, read it back, and keep reading; when the gateway refuses, try to add it anyway."""
    tell = _teller(application)
    status, adds = 0, True
    async with application.client() as http:
        while True:
            try:
                if adds:
                    added = await http.post(f"/switches/{SWITCH}/flows", json=FLOW)
                    tell("add flow", status=added.status_code, answer=added.text[:500])
                    adds = False
                answer = await http.get(f"/switches/{SWITCH}/flows")
                if answer.status_code != status:
                    status = answer.status_code
                    tell("read flows", status=status, answer=answer.text[:500])
                    adds = status == REFUSED
                    if adds:
                        continue  # at once: half a second after trust has ended, this program is cancelled
            except httpx.HTTPError as error:
                tell("connection", error=type(error).__name__)
                status = 0
            await asyncio.sleep(AGAIN_S if status in (0, REFUSED) else EVERY_S)


def _teller(application: Application) -> Callable[..., None]:
    def tell(what: str, **more: object) -> None:
        line = json.dumps({"at": time.time(), "what": what, "identity": application.identity, **more})
        if application.status_file is not None:
            with application.status_file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    return tell
