"""How every process logs: one line each on standard error, as JSON or for a person, the session's id on each line.

Code that takes up a session calls `bind_session`; whatever is logged in the same task, and in what that task starts,
then carries `session`. What libraries log through Python's own logging comes out in the same form.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Literal

import structlog

from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import LogSettings, ProcessSettings, load_settings

Format = Literal["json", "console"]
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_level = logging.INFO


def set_up_logs(form: Format = "json", level: str = "info") -> None:
    """From now on logs go to standard error."""
    set_level(level)
    renderer: Any = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            _only_from_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Passed) for handler in root.handlers):
        root.addHandler(_Passed(logging.WARNING))


def set_up_from(settings: LogSettings) -> None:
    """The same, as a process's settings say."""
    set_up_logs(settings.format, settings.level)


def set_level(level: str) -> None:
    """Log this and what is worse."""
    global _level
    _level = _LEVELS[level]


def reload_level(kind: type[ProcessSettings], path: Path) -> None:
    """Read the level again from a settings file; one that cannot be read changes nothing, and that is logged."""
    log = structlog.get_logger(__name__)
    try:
        level = load_settings(kind, path).log.level
    except Refusal as refusal:
        log.warning("settings not read again", reason=str(refusal))
        return
    set_level(level)
    log.warning("log level", level=level)  # a warning, so that it is seen at any level but error


def bind_session(session: str) -> None:
    """What this task logs from now on is about this session."""
    structlog.contextvars.bind_contextvars(session=session)


def clear_session() -> None:
    """What this task logs from now on is about no session."""
    structlog.contextvars.unbind_contextvars("session")


def _only_from_level(_logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    severity = logging.ERROR if method in ("exception", "critical") else _LEVELS.get(method, logging.INFO)
    if severity < _level:
        raise structlog.DropEvent
    return event


class _Passed(logging.Handler):
    """Hands a library's records on."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
