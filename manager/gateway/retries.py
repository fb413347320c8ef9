"""How the gateway worker retries what its peers refuse for now: with a growing delay, and without flooding the log."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from attestgate.bus.api import BusError

_log = structlog.get_logger()


def bus_retries(message: str) -> AsyncRetrying:
    """Attempts at something on the bus until it succeeds; failures are logged as `message`."""
    return AsyncRetrying(
        retry=retry_if_exception_type(BusError),
        wait=wait_exponential_jitter(multiplier=0.1, max=5),
        before_sleep=log_retries(message),
    )


def log_retries(message: str) -> Callable[[RetryCallState], None]:
    """A `before_sleep` for tenacity that logs the first failure in a row, and then every tenth."""

    def before_sleep(state: RetryCallState) -> None:
        if state.attempt_number % 10 == 1:
            problem = str(state.outcome and state.outcome.exception())
            _log.warning(message, attempt=state.attempt_number, problem=problem)

    return before_sleep
