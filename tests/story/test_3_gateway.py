"""At the gateway: who has no admitted certificate is refused whatever he says, and who has one cannot say who he is."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest

from attestgate.app_agent.step8_open import client
from attestgate.compose.demo import intruders
from attestgate.compose.local.stack import Stack
from attestgate.enclave.simulated.measure import agent_manifest, measure
from attestgate.schemas.enrolment import AppEnrolment, Enrol, Placement
from attestgate.schemas.settings import load_measured
from tests.support.story import HOST, MACHINE, scene, through
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

IDENTITY = "spiffe://attestgate.test/host/host-1/app/app-1"
SPOOFED = {
    "X-Attestgate-Identity": IDENTITY,
    "X-Attestgate-Host-Integrity": "anchored",
    "Client-Cert": ":bm90IGEgY2VydGlmaWNhdGU=:",
    "X-SSL-Client-Verify": "SUCCESS",
    "X-Forwarded-Client-Cert": f"URI={IDENTITY}",
}


async def test_without_a_certificate_and_with_a_foreign_one(stack: Stack) -> None:
    await through(stack, "app-1")
    assert IDENTITY in stack.log("controller")
    await scene(stack, intruders.outsiders)


@threat(rows.NO_CERTIFICATE)
async def test_headers_that_name_an_identity_open_nothing(stack: Stack) -> None:
    measured = load_measured(stack.plan.settings("app.measured"))
    config = stack.nginx.config
    nothing = ssl.create_default_context(cadata=measured.gateway_ca)
    async with client(lambda: nothing, f"{config.address}:{config.port}", measured) as http:
        for path in ("/switches", "/switches/s1/flows", "/", "/health", "/entries", "/..%2f"):
            for method in ("GET", "POST", "DELETE", "PUT"):
                answer = await http.request(method, path, headers=SPOOFED)
                assert answer.status_code in (400, 403), (method, path)
    assert "/..%2f" not in stack.log("controller")


@threat(rows.NO_CERTIFICATE)
async def test_plain_http_is_no_way_in(stack: Stack) -> None:
    config = stack.nginx.config
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://{config.address}:{config.port}/switches", headers=SPOOFED)
    assert answer.status_code in (400, 403)


@threat(rows.ADMIN_REACHED)
async def test_nobody_but_the_gateways_user_reaches_its_sockets(stack: Stack) -> None:
    config = stack.nginx.config
    assert config.admin.stat().st_mode & 0o777 == 0o600
    assert config.folder.stat().st_mode & 0o777 == 0o700
    assert isinstance(config.controller, Path) and config.controller.stat().st_mode & 0o777 == 0o600


@threat(rows.IDENTITY_SPOOFED)
async def test_an_admitted_application_cannot_name_itself(stack: Stack) -> None:
    code = stack.plan.folder / "spoofing"
    await asyncio.to_thread(_spoofing_code, code)
    measured = stack.plan.settings("app.measured")
    found = await asyncio.to_thread(measure, agent_manifest("app", code), code, measured)
    subject = AppEnrolment(
        id="app-5",
        mrenclaves=[found.mrenclave.hex()],
        placements=[Placement(host=HOST, volume=1)],
        allow=["POST /switches/s1/flows"],
    )
    await stack.order(Enrol(subject=subject))
    mark, said = stack.events.mark, len(stack.log("controller"))
    child = await stack.start_app("app-5", HOST, MACHINE, volume=stack.plan.volume("app-2"), code=code)
    await stack.until("app", "app-5", "admitted", since=mark)
    assert await stack.saw("app-5", "add flow", 201) is not None
    assert await stack.saw("app-5", "read flows", 403) is not None  # no rule allows that
    await child.stop()
    added = [line for line in stack.log("controller")[said:].splitlines() if '"method": "POST"' in line]
    assert added  # once or twice: after its 403 the program tries again
    assert all("spiffe://attestgate.test/host/host-1/app/app-5" in line and IDENTITY not in line for line in added)


def _spoofing_code(folder: Path) -> None:
    program = intruders.copy_code(folder) / "app_agent" / "examples" / "flows.py"
    text = program.read_text(encoding="utf-8")
    opened = "application.client() as http:"
    changed = text.replace(opened, f"{opened}\n        http.headers.update({SPOOFED!r})")
    assert changed != text
    program.write_text(changed, encoding="utf-8")
