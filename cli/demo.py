"""`attestgate demo` and `attestgate up`: run the whole stack on this machine."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from attestgate.cli.common import INTERRUPTED, say
from attestgate.compose.demo.story import tell_story
from attestgate.compose.local.up import keep_up


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.command("demo")(demo)
    app.command("up")(up)


def demo() -> None:
    """Run the whole protocol on this machine, with a simulated SGX platform, and check every step of it.

    Exits 0 only if every check passed: what must work works, what must fail fails. Takes about a minute, needs no
    privileges, uses loopback only, and leaves nothing running.
    """
    sys.exit(asyncio.run(_until_done(tell_story)))


def up(
    cluster: Annotated[
        bool, typer.Option(help="Run the bus as three servers, of which any one may be killed.")
    ] = False,
    sync: Annotated[
        str,
        typer.Option(
            help="How often a bus server flushes to disk: a duration such as 2m, or always (before it acknowledges)."
        ),
    ] = "2m",
) -> None:
    """Run the same stack until Ctrl-C, and print how to watch it."""
    sys.exit(asyncio.run(_until_done(partial(keep_up, cluster=cluster, sync_interval=sync))))


async def _until_done(work: Callable[[Path, Callable[[str], None]], Coroutine[Any, Any, int]]) -> int:
    """Run in a temporary folder; Ctrl-C and SIGTERM shut down cleanly, every process stopped and every file removed.

    The folder is removed while the signals are still handled: an impatient second Ctrl-C leaves no key behind.
    """
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="attestgate-") as folder:
        task = asyncio.ensure_future(work(Path(folder), say))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            say("stopped")
            return INTERRUPTED
        finally:
            await loop.shutdown_default_executor()  # its threads may still be writing keys
