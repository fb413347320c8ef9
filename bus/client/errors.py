"""The NATS client's errors as the bus's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors
from nats.js.errors import APIError, NoStreamResponseError

from attestgate.bus.api import BusError, Conflict

ANSWER_S = 2.0
"""Time-out of one request, in seconds, before it is retried."""
WRONG_SEQUENCE = {10071, 10164}
"""JetStream error codes: the expected last sequence is not the last one."""
NO_LEADER = {10005, 10008, 10009, 10039}
"""JetStream error codes: a cluster is between two leaders, or has just started and lacks one or some of its servers."""


class Unanswered(BusError):
    """No answer in time: it may or may not have been stored, so it is retried with the same id."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the client's errors into the bus's, naming what was attempted.

    The client swallows a cancellation that comes while it flushes, or makes an error of it: it is raised again here, or
    Ctrl-C would be lost.
    """
    task = asyncio.current_task()
    cancelled = task.cancelling() if task else 0
    try:
        with _translated(what):
            yield
    except BusError:
        if task and task.cancelling() > cancelled:
            raise asyncio.CancelledError from None
        raise
    if task and task.cancelling() > cancelled:
        raise asyncio.CancelledError


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except APIError as error:
        if error.err_code in WRONG_SEQUENCE:
            raise Conflict(f"{what}: lost compare-and-set") from None
        kind = Unanswered if error.err_code in NO_LEADER else BusError
        raise kind(f"{what}: {error.description} (JetStream {error.err_code})") from None
    except (NoStreamResponseError, nats.errors.NoRespondersError, TimeoutError):
        raise Unanswered(f"{what}: no answer; is the server up, and is this permitted?") from None
    except nats.errors.OutboundBufferLimitError:
        raise Unanswered(f"{what}: not connected, and the outbound buffer is full") from None
    except nats.errors.MaxPayloadError:
        raise BusError(f"{what}: larger than the bus takes") from None
    except nats.errors.Error as error:
        raise BusError(f"{what}: {str(error) or type(error).__name__}") from None
