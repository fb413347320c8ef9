"""An agent's sessions, one after another: whatever ends one, there is a next, after an ever longer pause."""

from __future__ import annotations

import asyncio

import pytest

from attestgate.bus.agent.link import SessionOver
from attestgate.bus.agent.process import BACK_OFF_S, lease_over, sessions_without_end
from attestgate.bus.api import BusError
from attestgate.enclave.api import EnclaveError
from attestgate.schemas.base import Refusal


async def pauses(monkeypatch: pytest.MonkeyPatch, ends: list[BaseException], lasted_s: float = 0.0) -> list[float]:
    """How long the agent waits after each session, when they end so; it is cancelled after the last one."""
    slept: list[float] = []
    clock = [0.0]

    async def session() -> None:
        clock[0] += lasted_s
        if not ends:
            raise asyncio.CancelledError
        raise ends.pop(0)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("attestgate.bus.agent.process.asyncio.sleep", sleep)
    monkeypatch.setattr("attestgate.bus.agent.process.time.monotonic", lambda: clock[0])
    with pytest.raises(asyncio.CancelledError):
        await sessions_without_end(session, 2.0, EnclaveError)
    return slept


async def test_whatever_ends_a_session_there_is_a_next(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = Refusal.because("host.list", "list", expected="a list", found="none", action="-")
    ends = [SessionOver([lease_over("ab")], None), refusal, BusError("no bus"), EnclaveError("no quote")]
    assert await pauses(monkeypatch, [*ends]) == [2.0, 3.0, 4.5, 6.75]


async def test_the_pause_has_a_limit_and_a_long_session_makes_it_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(await pauses(monkeypatch, [BusError("x") for _ in range(20)])) == BACK_OFF_S
    assert await pauses(monkeypatch, [BusError("x") for _ in range(3)], BACK_OFF_S + 1) == [2.0, 2.0, 2.0]


async def test_a_fault_of_ours_ends_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        await pauses(monkeypatch, [ZeroDivisionError()])
