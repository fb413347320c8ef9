"""`attestgate up`: the stack with one host and one application, kept until it is told to stop."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from compose.stack import Stack
from compose.vectors import CLEAN
from schemas.events import Event


async def keep_up(folder: Path, say: Callable[[str], None]) -> int:
    """Run until cancelled."""

    def tell(event: Event) -> None:
        say(f"  {event.kind:8} {event.subject:12} {event.what:18} {event.state or ''}")

    async with Stack(folder, tell=tell, say=say) as stack:
        measurement_list = folder / "measurement-list"
        shutil.copy(CLEAN, measurement_list)
        await stack.put_policy(measurement_list)
        await stack.enrol_host("host-1", "machine-a")
        await stack.enrol_app("app-1", "host-1", 0)
        await stack.start_host("host-1", "machine-a", measurement_list, ["app-1"])
        await stack.until("host", "host-1", "trusted")
        await stack.start_app("app-1", "host-1", "machine-a")
        await stack.until("app", "app-1", "admitted")
        credentials = stack.plan.credentials("viewer", "viewer")
        operator = stack.plan.settings("operator")
        say(
            f"""
The application is through the gateway. Watch, from another terminal:
  nats --server {stack.server.url} --creds {credentials} sub 'attest.v1.events.>'
  attestgate sessions --operator {operator}
  attestgate revoke app app-1 --reason 'just trying' --operator {operator}
Ctrl-C ends everything and removes {folder}.
"""
        )
        await asyncio.Event().wait()
    return 0
