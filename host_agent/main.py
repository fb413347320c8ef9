"""The host agent's main loop: one session after another."""

from __future__ import annotations

import asyncio

import structlog

from attestgate.bus.agent.link import AgentSession, Link, SessionOver
from attestgate.bus.agent.managers_clock import ManagersClock
from attestgate.bus.agent.process import agent_main, healthy_for, lease_over, sessions_without_end, tell
from attestgate.bus.api import BusError
from attestgate.bus.auth.credentials import require
from attestgate.bus.client.nats import join
from attestgate.bus.subjects import recheck_step
from attestgate.enclave.api import Enclave, EnclaveError
from attestgate.enclave.providers.choice import open_enclave
from attestgate.host_agent.step1_hello import hello
from attestgate.host_agent.step3_evidence import first_evidence, recheck_evidence
from attestgate.host_agent.step4_key import take_key
from attestgate.host_agent.step6_deliver import deliver
from attestgate.host_agent.tpm_client import TpmClient
from attestgate.host_agent.witness import Witness
from attestgate.schemas.base import Refusal, Secret, pack, unpack
from attestgate.schemas.messages import Accepted, Challenge, DeliverKey, EvidenceKind, Recheck
from attestgate.schemas.settings import HostSettings, Measured, load_measured

log = structlog.get_logger("host_agent")
PATIENCE_S = 10.0
"""Time-out for an answer within the handshake."""


class HostAgent:
    """Runs sessions on one enclave."""

    def __init__(self, enclave: Enclave, link: Link, settings: HostSettings, measured: Measured) -> None:
        self._enclave = enclave
        self._link = link
        self._settings = settings
        self._measured = measured
        self._tpm = TpmClient(settings.tpm) if settings.tpm else None
        self._managers = measured.managers
        self._witness = Witness(set(self._managers.by_role["manager"]))

    async def run(self) -> None:
        """Run sessions until cancelled."""
        await sessions_without_end(self._session, self._settings.retry_s, EnclaveError)

    async def _session(self) -> None:
        session = AgentSession(self._link, self._managers, list(self._measured.suites), self._settings.retry_s)
        can_give: list[EvidenceKind] = ["sgx", "ima", "tpm"] if self._tpm else ["sgx", "ima"]
        challenge = await session.open(hello(self._settings.id, can_give), PATIENCE_S)
        now = ManagersClock(challenge.issued_at)
        log.info("challenged", session=session.session, suite=session.suite)
        tpm = self._wanted_tpm(challenge)
        evidence = await asyncio.to_thread(
            first_evidence, self._enclave, session, challenge, self._settings.id, self._settings.measurement_list, tpm
        )
        await session.send_evidence(challenge, evidence)
        log.info("evidence sent", list_bytes=evidence.measurements.size, quote_bytes=len(evidence.quote))
        k = await take_key(session, PATIENCE_S)
        log.info("key K received and proven")
        await self._serve(session, k, tpm, now)

    def _wanted_tpm(self, challenge: Challenge) -> TpmClient | None:
        """The TPM's service, if the manager wants its quotes in this session. Raises Refusal if there is none."""
        if "tpm" not in challenge.wanted:
            return None
        if self._tpm is None:
            raise Refusal.because(
                "host.tpm",
                "tpm",
                expected="the address of `attestgate tpm serve` (this host's TPM is enrolled)",
                found="no such setting",
                action="add it to the host agent's settings",
            )
        return self._tpm

    async def _serve(self, session: AgentSession, k: Secret, tpm: TpmClient | None, now: ManagersClock) -> None:
        """Answer the manager on the channel until the lease expires."""
        lease_end, quiet_s = now() + PATIENCE_S, float(self._settings.retry_s)
        while now() < lease_end:
            heard = await session.hear(quiet_s)
            if heard is None:
                await session.resume()
                continue
            step, data = heard
            if step == "accepted":
                accepted = unpack(Accepted, data)
                lease_end = float(accepted.lease_end)
                healthy_for(self._settings.health_file, lease_end - now())
                quiet_s = max(accepted.next_recheck - now(), 0.0) + self._settings.retry_s
                log.info("accepted", lease_end=accepted.lease_end, next_recheck=accepted.next_recheck)
            elif step == "recheck":
                question = unpack(Recheck, data)
                now.heard(question.issued_at)
                self._witness.hear(question.log_head)
                answer = await asyncio.to_thread(
                    recheck_evidence,
                    self._enclave,
                    session,
                    question,
                    self._settings.id,
                    self._settings.measurement_list,
                    tpm,
                )
                await session.say(recheck_step(pack(answer)), answer)
                log.info("rechecked", new_list_bytes=answer.measurements.size)
            elif step == "deliver_key":
                order = unpack(DeliverKey, data)
                done = await asyncio.to_thread(deliver, self._enclave, k, self._settings.volumes, order)
                await session.say("key_delivered", done)
                if done.problem is None:
                    log.info("key delivered", app=order.app, app_session=order.app_session, volume=order.volume)
                else:
                    tell("key not delivered", [done.problem], app=order.app, app_session=order.app_session)
        raise SessionOver([lease_over(session.session)], None)


async def run(settings: HostSettings) -> None:
    """Open the enclave and the bus, and serve until cancelled. Raises Refusal, EnclaveError, BusError."""
    measured = load_measured(settings.measured)
    require(settings.bus.credentials, "host")
    enclave = open_enclave(settings.platform.kind, settings.profile)
    async with await join(settings.bus) as bus:
        link = Link(bus, "host", settings.id)
        await link.listen()
        log.info("host agent", host=settings.id, simulated=enclave.simulated)
        await HostAgent(enclave, link, settings, measured).run()


def main(arguments: list[str]) -> int:
    """The process in the enclave."""
    return agent_main("host_agent", HostSettings, run, (BusError, EnclaveError), arguments)
