"""An agent as a process: its argument, its signals, its exit code; and one session after another in it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog

from attestgate.bus.agent.link import SessionOver
from attestgate.bus.api import BusError
from attestgate.bus.lifetime import until_told
from attestgate.bus.logs import reload_level, set_up_from, set_up_logs
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.settings import AgentSettings, load_settings

log = structlog.get_logger(__name__)
S = TypeVar("S", bound=AgentSettings)
OK, TROUBLE, WRONG_SETTINGS = 0, 1, 2
BACK_OFF_S = 60.0
"""The longest pause between two sessions; after a session that lasted longer, the pause is the shortest again."""


def agent_main(
    name: str,
    kind: type[S],
    run: Callable[[S], Coroutine[Any, Any, None]],
    trouble: tuple[type[Exception], ...],
    arguments: list[str],
) -> int:
    """Run an agent until SIGTERM or SIGINT; SIGHUP reloads its log level.

    Exit codes: 0 stopped, 1 `trouble`, 2 wrong settings.
    """
    if len(arguments) != 1:
        sys.stderr.write(f"usage: python -m {name} SETTINGS\n")
        return WRONG_SETTINGS
    path = Path(arguments[0])
    set_up_logs()
    try:
        settings = load_settings(kind, path)
        set_up_from(settings.log)
        until_told(run(settings), lambda: reload_level(kind, path))
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return WRONG_SETTINGS
    except trouble as error:
        sys.stderr.write(f"{error}\n")
        return TROUBLE
    return OK


async def sessions_without_end(
    session: Callable[[], Awaitable[None]], retry_s: float, trouble: type[Exception]
) -> None:
    """Run sessions until cancelled: an agent that is not trusted retries with exponential back-off.

    `retry_s` is the first pause in seconds, `trouble` what the platform raises when it fails for now.
    """
    wait_s = retry_s
    while True:
        started = time.monotonic()
        try:
            await session()
        except SessionOver as over:
            tell("session over", over.reasons, state=over.by_manager)
        except Refusal as refusal:
            tell("cannot prove", list(refusal.reasons))
        except (BusError, trouble) as error:
            log.warning("trouble", error=str(error))
        if time.monotonic() - started > BACK_OFF_S:
            wait_s = retry_s
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 1.5, BACK_OFF_S)


def tell(what: str, reasons: list[Reason], **more: object) -> None:
    """Log each reason in full, for people to read."""
    for reason in reasons:
        log.warning(what, **more, **reason.model_dump())


def healthy_for(path: Path | None, left_s: float) -> None:
    """Write the end of the lease, by this machine's clock, for health checks. If that fails it is logged."""
    if path is None:
        return
    try:
        new = path.with_name(f"{path.name}.new")
        new.write_text(f"{int(time.time() + left_s)}\n", encoding="ascii")
        new.replace(path)
    except OSError as error:
        log.warning("health file not written", path=str(path), error=error.strerror)


def lease_over(session: str) -> Reason:
    """The reason when the lease expired without a word from the manager."""
    return Reason(
        code="lease.over",
        field="lease",
        expected=f"the lease of session {session} renewed in time",
        found="no message from the manager",
        action="none needed: a new session starts; if it happens again, check the manager and the bus",
    )
