"""`attestgate up`: the stack with one host and one application, until it is stopped."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from attestgate.compose.local.recorded import CLEAN
from attestgate.compose.local.stack import Stack
from attestgate.schemas.events import Event

FORGET_S = 60.0
"""How often reported events are discarded: it may run for months."""


async def one_of_each(stack: Stack, within_s: float = 60.0) -> Path:
    """Have host-1 trusted and app-1 admitted in a running stack; returns the host's measurement list.

    `within_s` is for each of the two.
    """
    measurement_list = stack.plan.folder / "measurement-list"
    shutil.copy(CLEAN, measurement_list)
    await stack.put_policy(measurement_list)
    await stack.enrol_host("host-1", "machine-a")
    await stack.enrol_app("app-1", "host-1", 0)
    await stack.start_host("host-1", "machine-a", measurement_list, ["app-1"])
    await stack.until("host", "host-1", "trusted", within_s=within_s)
    await stack.start_app("app-1", "host-1", "machine-a")
    await stack.until("app", "app-1", "admitted", within_s=within_s)
    return measurement_list


async def keep_up(
    folder: Path, say: Callable[[str], None], *, cluster: bool = False, sync_interval: str = "2m"
) -> NoReturn:
    """Run until cancelled. `cluster` and `sync_interval` are the bus's: see `compose.local.stack.Stack`."""

    def tell(event: Event) -> None:
        say(f"  {event.kind:8} {event.subject:12} {event.what:18} {event.state or ''}")

    async with Stack(folder, tell=tell, say=say, cluster=cluster, sync_interval=sync_interval) as stack:
        await one_of_each(stack)
        viewer = stack.plan.keys / "viewer"
        operator = stack.plan.settings("operator")
        say(
            f"""
The application is admitted at the gateway. Watch, from another terminal:
  export XDG_CONFIG_HOME={viewer} PATH="{Path(sys.executable).parent}:$PATH"
  nats --context attestgate sub 'attest.v1.events.>'
  nats --context attestgate kv watch summaries
  attestgate sessions --operator {operator}
  attestgate revoke app app-1 --reason 'just trying' --operator {operator}
Ctrl-C stops everything and removes {folder}.
"""
        )
        while True:
            stack.events.forget()
            await asyncio.sleep(FORGET_S)
