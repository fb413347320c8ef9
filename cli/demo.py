"""`attestgate demo` and `attestgate up`: the whole stack on this machine."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import typer

from cli.common import INTERRUPTED, say
from compose.story import tell_story
from compose.up import keep_up


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.command("demo")(demo)
    app.command("up")(up)


def demo() -> None:
    """Tell the whole story on this machine, with a simulated SGX platform, and check every step of it.

    Exits 0 only if every check held: what must work works, what must fail fails. Takes about a minute, needs no
    privileges, talks on loopback only, and leaves nothing running.
    """
    with tempfile.TemporaryDirectory(prefix="attestgate-") as folder:
        sys.exit(_until_done(tell_story(Path(folder), say)))


def up() -> None:
    """Keep the same stack running until Ctrl-C, and say how to watch it."""
    with tempfile.TemporaryDirectory(prefix="attestgate-") as folder:
        sys.exit(_until_done(keep_up(Path(folder), say)))


def _until_done(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end; Ctrl-C and SIGTERM end it in order, every process and file tidied up."""

    async def guarded() -> int:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            say("stopped")
            return INTERRUPTED

    return asyncio.run(guarded())
