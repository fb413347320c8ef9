"""The example program goes on, whatever the gateway answers or does not answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import cast

import httpx
import pytest

from attestgate.app_agent.application import Application
from attestgate.app_agent.examples import flows


class Gateway:
    """Answers in turn, None for a connection that it closes, and counts as a program's `Application`."""

    identity = "spiffe://example.org/host/h1/app/a1"

    def __init__(self, folder: Path, *answers: int | None) -> None:
        self.status_file = folder / "status.jsonl"
        self.asked: list[str] = []
        self._answers = list(answers)
        self.over = asyncio.Event()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url="https://gateway", transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if not self._answers:
            self.over.set()
            await asyncio.Event().wait()
        self.asked.append(request.method)
        status = self._answers.pop(0)
        if status is None:
            raise httpx.ConnectError("closed")
        return httpx.Response(status)


async def test_it_adds_its_flow_once_and_again_after_each_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "AGAIN_S", 0.0)
    gateway = Gateway(tmp_path, None, 201, 200, 200, 403, None, 403, 403, 403, 200)
    running = asyncio.create_task(flows.main(cast(Application, gateway)))
    over = asyncio.create_task(gateway.over.wait())
    await asyncio.wait([running, over], return_when=asyncio.FIRST_COMPLETED)
    assert not running.done() and running.cancel()
    assert gateway.asked == ["POST", "POST", "GET", "GET", "GET", "POST", "POST", "GET", "POST", "GET"]
    told = [json.loads(line) for line in gateway.status_file.read_text(encoding="utf-8").splitlines()]
    assert [(line["what"], line.get("status")) for line in told] == [
        ("connection", None),
        ("add flow", 201),
        ("read flows", 200),
        ("read flows", 403),
        ("connection", None),
        ("add flow", 403),
        ("read flows", 403),
        ("add flow", 403),
        ("read flows", 200),
    ]


async def test_a_refusal_is_answered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program has half a second after trust has ended."""
    monkeypatch.setattr(flows, "AGAIN_S", 3600.0)
    gateway = Gateway(tmp_path, 201, 200, 403, 403)
    running = asyncio.create_task(flows.main(cast(Application, gateway)))
    async with asyncio.timeout(10):
        await gateway.over.wait()
    assert running.cancel()
    assert gateway.asked == ["POST", "GET", "GET", "POST"]
