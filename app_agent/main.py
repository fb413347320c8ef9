"""The application agent's main loop: attest, prove, get admitted, run the program; when trust ends, start over."""

from __future__ import annotations

import asyncio
from itertools import dropwhile

import structlog

from attestgate.app_agent.application import Application
from attestgate.app_agent.measured import load_for_application, program_of
from attestgate.app_agent.step5_evidence import TlsKey, first_evidence, hello, recheck_evidence
from attestgate.app_agent.step6_colocation import prove_colocation
from attestgate.app_agent.step7_certificate import Credential, accept_certificate
from attestgate.bus.agent.link import AgentSession, Link, SessionOver
from attestgate.bus.agent.managers_clock import ManagersClock
from attestgate.bus.agent.process import agent_main, healthy_for, lease_over, sessions_without_end
from attestgate.bus.api import BusError
from attestgate.bus.auth.credentials import require
from attestgate.bus.client.nats import join
from attestgate.enclave.api import Enclave, EnclaveError
from attestgate.enclave.providers.choice import open_enclave
from attestgate.schemas.base import Reason, Refusal, unpack
from attestgate.schemas.messages import Certificate, Ready, Recheck
from attestgate.schemas.settings import AppSettings, Measured

log = structlog.get_logger("app_agent")
PATIENCE_S = 15.0
"""Time-out for an answer within the handshake: the host has to answer in between."""
GRACE_S = 0.5
"""Between notifying the program that trust has ended and cancelling it."""


class AppAgent:
    """Runs sessions on one enclave."""

    def __init__(self, enclave: Enclave, link: Link, settings: AppSettings, measured: Measured) -> None:
        self._enclave = enclave
        self._link = link
        self._settings = settings
        self._measured = measured
        self._program: asyncio.Task[None] | None = None
        self._application: Application | None = None
        self._module = program_of(measured)

    async def run(self) -> None:
        """Run sessions until cancelled. Each session's program ends with it."""
        await sessions_without_end(self._session, self._settings.retry_s, EnclaveError)

    async def _session(self) -> None:
        reasons: list[Reason] = []
        try:
            await self._admission()
        except (SessionOver, Refusal) as over:
            reasons = list(over.reasons)
            raise
        finally:
            await self._stop(reasons)

    async def _admission(self) -> None:
        settings, managers = self._settings, self._measured.managers
        session = AgentSession(self._link, managers, list(self._measured.suites), settings.retry_s)
        challenge = await session.open(hello(settings.id, settings.host), PATIENCE_S)
        now = ManagersClock(challenge.issued_at)
        log.info("challenged", session=session.session, suite=session.suite)
        key = TlsKey.generate()
        evidence = await asyncio.to_thread(
            first_evidence,
            self._enclave,
            session,
            challenge,
            settings.id,
            key.request(),
            proxy=getattr(self._module, "PROXY", False),
        )
        await session.send_evidence(challenge, evidence)
        log.info("evidence sent", quote_bytes=len(evidence.quote))
        await prove_colocation(session, self._enclave, settings.volume, PATIENCE_S)
        log.info("co-location proven")
        await self._serve(session, key, now)

    async def _serve(self, session: AgentSession, key: TlsKey, now: ManagersClock) -> None:
        """Answer the manager on the channel until the lease expires."""
        credentials: dict[str, Credential] = {}
        lease_end, quiet_s = now() + PATIENCE_S, float(self._settings.retry_s)
        while now() < lease_end:
            heard = await session.hear(min(quiet_s, max(lease_end - now(), 0.0)))
            if heard is None:
                await session.resume()
                continue
            step, data = heard
            if step in ("certificate", "renew"):
                credential = accept_certificate(unpack(Certificate, data), key, self._measured)
                credentials[credential.serial] = credential
                log.info("certificate", serial=credential.serial, identity=credential.identity)
            elif step == "ready":
                ready = unpack(Ready, data)
                credentials = _still_used(credentials, ready.serial)
                lease_end = float(ready.lease_end)
                healthy_for(self._settings.health_file, lease_end - now())
                quiet_s = max(ready.next_recheck - now(), 0.0) + self._settings.retry_s
                self._start(ready, credentials[ready.serial])
            elif step == "recheck":
                question = unpack(Recheck, data)
                now.heard(question.issued_at)
                answer = await asyncio.to_thread(recheck_evidence, self._enclave, session, question, self._settings.id)
                await session.say("recheck_evidence", answer)
                log.info("rechecked")
        raise SessionOver([lease_over(session.session)], None)

    def _start(self, ready: Ready, credential: Credential) -> None:
        """Step 8: run the program, which now passes the gateway. A later `ready` renews lease or certificate."""
        if self._application is not None:
            self._application.lease_end = ready.lease_end
            self._application.credential = credential
            log.info("lease renewed", lease_end=ready.lease_end, serial=ready.serial)
            return
        self._application = Application(
            credential=credential,
            gateway=ready.gateway,
            measured=self._measured,
            settings=self._settings,
            lease_end=ready.lease_end,
        )
        log.info("ready", gateway=ready.gateway, lease_end=ready.lease_end)
        self._program = asyncio.create_task(self._module.main(self._application))
        self._program.add_done_callback(_program_done)

    async def _stop(self, reasons: list[Reason]) -> None:
        """Notify the program that trust has ended, wait a moment, cancel it."""
        application, program = self._application, self._program
        self._application = self._program = None
        if application is None or program is None:
            return
        application.reasons.extend(reasons)
        application.ended.set()
        await asyncio.wait({program}, timeout=GRACE_S)
        program.cancel()
        await asyncio.wait({program})  # its exception was logged when it was raised


async def run(settings: AppSettings) -> None:
    """Open the enclave and the bus, and serve until cancelled. Raises Refusal, EnclaveError, BusError."""
    measured = load_for_application(settings.measured)
    require(settings.bus.credentials, "app")
    enclave = open_enclave(settings.platform.kind, settings.profile)
    async with await join(settings.bus) as bus:
        link = Link(bus, "app", settings.id, settings.host)
        await link.listen()
        log.info("application agent", app=settings.id, host=settings.host, simulated=enclave.simulated)
        await AppAgent(enclave, link, settings, measured).run()


def main(arguments: list[str]) -> int:
    """The process in the enclave."""
    return agent_main("app_agent", AppSettings, run, (BusError, EnclaveError), arguments)


def _still_used(credentials: dict[str, Credential], serial: str) -> dict[str, Credential]:
    """The credential that is ready and newer ones. Raises Refusal `certificate`."""
    if serial not in credentials:
        raise Refusal.because(
            "certificate",
            "ready",
            expected="the serial of a certificate received before",
            found=serial,
            action="run manager and agent of one version",
        )
    return dict(dropwhile(lambda came: came[0] != serial, credentials.items()))


def _program_done(program: asyncio.Task[None]) -> None:
    if not program.cancelled() and program.exception() is not None:
        log.error("program failed", error=repr(program.exception()))
