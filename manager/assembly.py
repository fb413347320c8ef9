"""Assembles a manager worker from its settings: the only module that knows all parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import httpx
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.bus.api import Bus
from attestgate.bus.layout import ENROLMENT, OPERATORS, POLICIES
from attestgate.manager.attestation.collateral_client import CollateralClient
from attestgate.manager.attestation.fetch import Service
from attestgate.manager.attestation.ias_client import Ias
from attestgate.manager.attestation.pcs_client import Pcs
from attestgate.manager.attestation.service import AttestationService, Dcap, Epid, Root
from attestgate.manager.attestation.verifier import Verifier
from attestgate.manager.audit.alarms import Alarms
from attestgate.manager.audit.intake import Intake
from attestgate.manager.audit.last_head import LastHead
from attestgate.manager.audit.log import DecisionLog
from attestgate.manager.audit.orders import Orders
from attestgate.manager.events.emitter import Emitter
from attestgate.manager.events.observer import Observer
from attestgate.manager.handlers.agent_messages import AgentMessages
from attestgate.manager.handlers.clock_watch import ClockWatch
from attestgate.manager.handlers.dispatcher import Dispatcher
from attestgate.manager.handlers.gateway_reports import Floors, GatewayReports
from attestgate.manager.handlers.hello import HelloHandler
from attestgate.manager.handlers.operators import Operators
from attestgate.manager.handlers.quarantine import Quarantine
from attestgate.manager.handlers.session_messages import SessionSteps
from attestgate.manager.handlers.worker import Worker
from attestgate.manager.local.clock_steps import ClockSteps
from attestgate.manager.local.crl_files import CrlFiles
from attestgate.manager.local.high_water import HighWater, PolicyFloors
from attestgate.manager.local.keyfiles import read_identity, read_private, read_secret
from attestgate.manager.local.marks import Marks
from attestgate.manager.local.slices import Slices
from attestgate.manager.local.statements import Statements
from attestgate.manager.metrics.manager import ManagerMetrics
from attestgate.manager.pki.authority import expiries, load_authority
from attestgate.manager.policy.applied_commands import AppliedCommands
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.policy.in_force import RollbackAlarm, StatementsInForce
from attestgate.manager.policy.policies import Policies
from attestgate.manager.policy.policy_set import read_policy_key
from attestgate.manager.policy.revocations import Revocations
from attestgate.manager.policy.signers import Signers
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.issuance import Certificates
from attestgate.manager.records.outbox import Outbox
from attestgate.manager.records.ranks import Ranks
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.records.record_memory import RecordMemory
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.records.session_store import SessionStore
from attestgate.manager.records.storage_keys import StorageKeyFile
from attestgate.manager.sessions.draft import Context
from attestgate.manager.verification.offline.quote import INTEL_IAS_ROOTS, INTEL_SGX_ROOTS
from attestgate.manager.verification.x509 import fingerprint
from attestgate.schemas.base import Refusal
from attestgate.schemas.enrolment import COMMAND, MANIFEST, MANIFESTS
from attestgate.schemas.settings import AttestationSettings, ManagerSettings
from attestgate.schemas.signing import Signer, TrustedKeys

log = structlog.get_logger(__name__)
MICROSECONDS = 1_000_000
"""Of a second."""


def assemble(
    settings: ManagerSettings,
    bus: Bus,
    http: httpx.AsyncClient,
    now: Callable[[], float] = time.time,
    metrics: ManagerMetrics | None = None,
    steady: Callable[[], float] = time.monotonic,
) -> Worker:
    """A worker on a bus. Reads the keys that the settings name. `now` is the clock, Unix seconds. Raises Refusal."""
    observer = metrics or Observer()
    source = f"attestgate/{settings.name}"
    identity = Signer(settings.trust_domain, read_identity(settings.identity))
    cipher = RecordCipher(StorageKeyFile(settings.storage_keys))
    high_water = HighWater(settings.state_dir / "high-water.json")
    policy_keys = [read_policy_key(path) for path in settings.runtime_policy_keys]
    managers = {identity.public, *map(bytes.fromhex, settings.former_identities)}
    signers = Signers(settings.trust_domain, settings.operators, managers)
    emitter = Emitter(bus, source, now, observer)
    steps = ClockSteps(now, steady, memory_s=settings.timing.certificate_s)
    memory = Statements(settings.state_dir / "statements.sqlite")
    marks = Marks(settings.state_dir / "marks.sqlite", steps.passed)
    told = RollbackAlarm(settings.name, emitter.emit)
    in_force = partial(StatementsInForce, manager=identity, trusted=signers.trusted, memory=memory, tell=told.tell)
    enrolled = bus.bucket(ENROLMENT.name)
    enrolments = Enrolments(enrolled, in_force(ENROLMENT.name, enrolled, COMMAND, signers.commands_of), marks, steady)
    slices, floors, documents = Slices(), PolicyFloors(), bus.bucket(POLICIES.name)
    manifests = in_force(POLICIES.name, documents, MANIFEST, lambda _: MANIFESTS)
    policies = Policies(documents, manifests, floors, marks, slices, policy_keys)
    applied = AppliedCommands(bus.bucket(OPERATORS.name), identity, signers.trusted, memory)
    authority = load_authority(settings.pki, read_secret(settings.pki_passphrase))
    root = root_of(settings.attestation)
    collateral = _collateral(settings.attestation, bus, http, high_water, floors, root)

    def context() -> Context:
        at_us = int(now() * MICROSECONDS)
        return Context(
            now=at_us // MICROSECONDS,
            now_us=at_us,
            timing=settings.timing,
            identity=identity,
            gateways=settings.gateways,
            source=source,
            log_head=decisions.checkpoint,
            standing_still=decisions.standing_still,
        )

    intake = Intake(bus, signers.trusted, steady)
    decisions = _decision_log(settings, bus, intake, identity, signers.trusted, emitter, now)
    orders = Orders(intake, identity, signers, settings.gateways.name)
    if metrics is not None:
        _show(metrics, settings, collateral, decisions)
    messages = SessionMessages(bus, cipher)
    current = CurrentSessions(bus, cipher, messages)
    outbox, ranks = Outbox(bus, messages, current, intake), Ranks(current, marks)
    store = SessionStore(bus, cipher, outbox, context, RecordMemory(marks, steady), told.record, observer)
    service = _service(settings.attestation, http, root, read_secret(settings.salt).reveal(), collateral)
    verifier = Verifier(enrolments, policies, service, authority, high_water, slices)
    certificates = Certificates(
        bus, authority, settings.timing.certificate_s, orders, CrlFiles(settings.state_dir / "crl"), now, steps.passed
    )

    async def take(subject: str, data: bytes) -> None:
        await dispatcher.take(subject, data)

    quarantine = Quarantine(bus, settings.name, take)
    sessions = SessionSteps(store, ranks, enrolments, policies, context, certificates)
    clock = ClockWatch(settings.name, steps, store, sessions.policy, context, emitter.emit, certificates.clock_was_set)
    revocations = Revocations(bus, signers)
    operators = Operators(
        identity,
        signers,
        applied,
        enrolments,
        policies,
        revocations,
        current,
        messages,
        quarantine,
        orders,
        lambda: decisions.standing_still,
        emitter.emit,
        now,
        settings.timing.skew_s,
    )
    obey = operators.revoked_at_gateway
    remembered = Floors(marks, signers.trusted, current, revocations, obey, settings.name, emitter.emit)
    dispatcher = Dispatcher(
        store,
        messages,
        HelloHandler(bus, store, current, ranks, enrolments, context, settings.suite, steady),
        AgentMessages(store, current, ranks, enrolments, verifier, context, settings.trust_domain, certificates),
        sessions,
        GatewayReports(bus, enrolments, messages, orders, signers.trusted, remembered),
        operators,
    )
    background = (certificates.keep_lists, policies.follow, decisions.run, clock.run)
    return Worker(bus, dispatcher.take, background, emitter.emit, quarantine, now, observer)


def _collateral(
    settings: AttestationSettings,
    bus: Bus,
    http: httpx.AsyncClient,
    high_water: HighWater,
    floors: PolicyFloors,
    root: Root,
) -> CollateralClient:
    pcs, cache = Pcs(http, settings.pccs_url), bus.bucket("collateral")
    return CollateralClient(pcs, cache, high_water, floors, root_der=root.der, when_down=settings.when_down)


def _show(
    metrics: ManagerMetrics, settings: ManagerSettings, collateral: CollateralClient, decisions: DecisionLog
) -> None:
    metrics.certificates(lambda: expiries(settings.pki))
    metrics.collateral(collateral.heard)
    metrics.decision_log(decisions.status)


def _decision_log(
    settings: ManagerSettings,
    bus: Bus,
    intake: Intake,
    identity: Signer,
    managers: TrustedKeys,
    emitter: Emitter,
    now: Callable[[], float],
) -> DecisionLog:
    return DecisionLog(
        bus,
        intake,
        LastHead(settings.state_dir / "decision-log.json"),
        identity,
        managers,
        Alarms(settings.name, emitter.emit),
        now,
    )


def _service(
    settings: AttestationSettings, http: httpx.AsyncClient, root: Root, salt: bytes, collateral: CollateralClient
) -> AttestationService:
    """The attestation service that the settings select. Raises Refusal for a subscription key that cannot be read."""
    ias = settings.ias
    if settings.service == "dcap" or ias is None:
        return Dcap(collateral, root, salt)
    key = read_private(ias.subscription_key).decode("ascii", errors="replace").strip()
    service = Service(http, "ias", 0.2, {"Ocp-Apim-Subscription-Key": key})
    return Epid(Ias(service, ias.ias_url), root, salt, bytes.fromhex(ias.spid))


def root_of(settings: AttestationSettings) -> Root:
    """The root that evidence must chain to. Raises Refusal `settings.root`."""
    path = settings.root if settings.ias is None or settings.service == "dcap" else settings.ias.ias_crt
    try:
        data = path.read_bytes()
        pem = data.startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except (OSError, ValueError) as error:
        raise Refusal.because(
            "settings.root",
            str(path),
            expected="a root certificate, PEM or DER",
            found=getattr(error, "strerror", None) or type(error).__name__,
            action="correct this path in the settings, or the file",
        ) from None
    intel = INTEL_SGX_ROOTS if settings.service == "dcap" else INTEL_IAS_ROOTS
    simulated = fingerprint(certificate) not in intel
    if simulated and not settings.allow_simulated:
        raise Refusal.because(
            "settings.root",
            str(path),
            expected=f"Intel's root, SHA-256 {' or '.join(intel)}",
            found=f"a root with SHA-256 {fingerprint(certificate)}",
            action="use Intel's root; for a trial set attestation.allow_simulated = true in a development profile",
        )
    return Root(certificate.public_bytes(Encoding.DER), simulated)
