"""Evidence that is not this session's, key's, subject's or machine's: refused, and the session stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from secrets import token_bytes
from typing import Any

import pytest

from attestgate.bus import subjects
from attestgate.bus.crypto import envelope
from attestgate.manager.handlers.hello import HELLOS_A_SECOND, SESSIONS_A_SECOND, SESSIONS_AT_ONCE
from attestgate.manager.sessions.handshake import MAX_VERIFICATIONS
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import pack, unpack
from attestgate.schemas.binding import PROTOCOL, Role, canonical, digest, first_transcript, next_transcript, report_data
from attestgate.schemas.evidence import app_evidence_hash, host_evidence_hash, pack_measurements
from attestgate.schemas.messages import AppEvidence, AppHello, Challenge, HostEvidence, HostHello, Sealed
from attestgate.schemas.signing import Signed
from tests.support.manager.deployment import Deployment
from tests.support.manager.wire import Held
from tests.support.manager.world import APP_ENCLAVE, HOST_ENCLAVE, LISTS, OTHER_ENCLAVE
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

LIST = (LISTS / "clean.bin").read_bytes()


@dataclass(frozen=True)
class Question:
    """A public challenge, and all that report_data takes in, as an honest enclave would fill it in."""

    challenge: Challenge
    role: Role
    session: str
    subject: str
    nonce: bytes
    t1: bytes
    enclave_key: bytes
    evidence: bytes

    def report_data(self) -> bytes:
        return report_data(self.role, self.session, self.subject, self.nonce, self.t1, self.enclave_key, self.evidence)

    def seal(self, evidence: Any) -> bytes:
        """Anybody can seal to a public challenge."""
        info = canonical("evidence encryption", self.t1)
        suite: Any = self.challenge.suite
        ciphertext = envelope.seal(suite, self.challenge.session_key, info, pack(evidence))
        return pack(Sealed(session=self.challenge.session, ciphertext=ciphertext))


MEASUREMENTS = pack_measurements(LIST, 0)
REQUEST = token_bytes(100)


def question(site: Deployment, role: Role, id: str) -> Question:
    """The newest challenge of a subject."""
    signed = site.wire.said(subjects.outbound(role, id if role == "host" else f"h1.{id}", "challenge"))[-1]
    statement = unpack(Signed, signed)
    challenge = unpack(Challenge, statement.payload)
    t0 = first_transcript(challenge.suite, role, challenge.session, id, statement.signer)
    key = envelope.generate("mlkem768-x25519")[1]
    evidence = host_evidence_hash(MEASUREMENTS, None) if role == "host" else app_evidence_hash(REQUEST)
    t1 = next_transcript(t0, "down", "challenge", signed)
    return Question(challenge, role, challenge.session, id, challenge.nonce, t1, key, evidence)


def host_evidence(site: Deployment, asked: Question, said: Question, **changes: Any) -> bytes:
    """A host's evidence whose quote says `said`."""
    enclave = site.world.enclave(changes.get("machine", "machine-a"), changes.get("identity", HOST_ENCLAVE))
    quote = enclave.quote(said.report_data())
    return asked.seal(HostEvidence(enclave_key=asked.enclave_key, quote=quote, measurements=MEASUREMENTS))


async def challenged_host(site: Deployment) -> tuple[asyncio.Task[Any], Held]:
    """A host that was asked, its honest answer kept back."""
    await site.enrol_host()
    held = site.wire.hold(subjects.inbound("host", "h1", "evidence"))
    await site.host()
    trusted = asyncio.create_task(site.until("host", "h1", "trusted"))
    return trusted, await held


SWAPS: list[tuple[str, Callable[[Question], Question]]] = [
    ("role", lambda q: replace(q, role="app")),
    ("session", lambda q: replace(q, session="ab" * 16)),
    ("subject", lambda q: replace(q, subject="h2")),
    ("nonce", lambda q: replace(q, nonce=token_bytes(32))),
    ("transcript", lambda q: replace(q, t1=token_bytes(64))),
    ("enclave key", lambda q: replace(q, enclave_key=envelope.generate("mlkem768-x25519")[1])),
    ("evidence beside the quote", lambda q: replace(q, evidence=token_bytes(64))),
]


@threat(rows.EVIDENCE_RELAYED)
@pytest.mark.parametrize(("field", "swap"), SWAPS, ids=[field for field, _ in SWAPS])
async def test_a_host_quote_over_another_field_is_rejected_and_the_honest_one_taken(
    site: Deployment, field: str, swap: Callable[[Question], Question]
) -> None:
    trusted, honest = await challenged_host(site)
    asked = question(site, "host", "h1")
    site.wire.inject(subjects.inbound("host", "h1", "evidence"), host_evidence(site, asked, swap(asked)))
    rejected = await site.until("host", "h1", "evidence-rejected")
    assert event_code(rejected) == "sgx.report_data"
    site.wire.inject(*honest)
    await trusted


@threat(rows.EVIDENCE_RELAYED)
@pytest.mark.parametrize(("field", "swap"), SWAPS, ids=[field for field, _ in SWAPS])
async def test_an_application_quote_over_another_field_is_rejected_and_the_honest_one_taken(
    site: Deployment, field: str, swap: Callable[[Question], Question]
) -> None:
    held = site.wire.hold(subjects.inbound("app", "h1.a1", "evidence"))
    admitted = asyncio.create_task(site.admitted())
    honest = await held
    asked = question(site, "app", "a1")
    said = replace(swap(asked), role="host") if field == "role" else swap(asked)
    quote = site.world.enclave("machine-a", APP_ENCLAVE).quote(said.report_data())
    evidence = AppEvidence(enclave_key=asked.enclave_key, quote=quote, certificate_request=REQUEST)
    site.wire.inject(subjects.inbound("app", "h1.a1", "evidence"), asked.seal(evidence))
    assert event_code(await site.until("app", "a1", "evidence-rejected")) == "sgx.report_data"
    site.wire.inject(*honest)
    await admitted
    assert site.gateway.passes("a1")


async def test_the_control_an_honest_answer_made_here_is_taken(site: Deployment) -> None:
    """So that the refusals above are for the field that was swapped, and for nothing else."""
    _, _ = await challenged_host(site)
    asked = question(site, "host", "h1")
    site.wire.inject(subjects.inbound("host", "h1", "evidence"), host_evidence(site, asked, asked))
    await site.until("host", "h1", "granted")


FOREIGN: list[tuple[str, dict[str, Any], str]] = [
    ("another machine", {"machine": "machine-b"}, "host.platform"),
    ("another enclave", {"identity": OTHER_ENCLAVE}, "sgx.mrenclave"),
    ("an application's enclave", {"identity": APP_ENCLAVE}, "sgx.mrenclave"),
    ("a debug enclave", {"identity": HOST_ENCLAVE.model_copy(update={"debug": True})}, "sgx.debug"),
]


@threat(rows.EVIDENCE_FOREIGN, rows.OTHER_CODE)
@pytest.mark.parametrize(("who", "changes", "code"), FOREIGN, ids=[who for who, _, _ in FOREIGN])
async def test_valid_evidence_of_somebody_else_ends_nothing(
    site: Deployment, who: str, changes: dict[str, Any], code: str
) -> None:
    trusted, honest = await challenged_host(site)
    asked = question(site, "host", "h1")
    site.wire.inject(subjects.inbound("host", "h1", "evidence"), host_evidence(site, asked, asked, **changes))
    assert event_code(await site.until("host", "h1", "evidence-rejected")) == code
    site.wire.inject(*honest)
    await trusted


@threat(rows.EVIDENCE_RELAYED)
async def test_evidence_of_one_session_is_none_in_another(site: Deployment) -> None:
    """Its bytes, and its bytes under the other session's name."""
    old, honest, since = await site.second_session("evidence")
    new = unpack(Sealed, honest[1]).session
    renamed = unpack(Sealed, old).model_copy(update={"session": new})
    site.wire.inject(honest[0], old)
    site.wire.inject(honest[0], pack(renamed))
    await site.dropped(2)
    assert sorted(site.dropped_codes()) == ["envelope.open", "session.move"]
    site.wire.inject(*honest)
    await site.until("host", "h1", "trusted", since=since)


@threat(rows.EVIDENCE_RELAYED)
async def test_an_opened_quote_of_one_session_is_none_in_another(site: Deployment) -> None:
    """A manager's insider, or a relay with the plaintext: the quote itself names its session."""
    trusted, honest = await challenged_host(site)
    first = question(site, "host", "h1")
    site.wire.inject(*honest)
    await trusted
    await site.advance(2)
    held = site.wire.hold(subjects.inbound("host", "h1", "evidence"))
    await site.agents[0].stop()
    await site.host()
    await held
    second = question(site, "host", "h1")
    assert second.session != first.session
    site.wire.inject(honest[0], host_evidence(site, replace(second, enclave_key=first.enclave_key), first))
    assert event_code(await site.until("host", "h1", "evidence-rejected")) == "sgx.report_data"


@threat(rows.EVIDENCE_FOREIGN)
async def test_a_cap_on_what_is_judged_and_the_honest_one_before_it_counts(site: Deployment) -> None:
    trusted, honest = await challenged_host(site)
    asked = question(site, "host", "h1")
    foreign = host_evidence(site, asked, asked, machine="machine-b")
    for _ in range(MAX_VERIFICATIONS - 1):
        site.wire.inject(honest[0], foreign)
        await site.quiet()
    site.wire.inject(*honest)
    await trusted
    assert site.what("host", "h1").count("evidence-rejected") == MAX_VERIFICATIONS - 1


@threat(rows.EVIDENCE_FOREIGN)
async def test_beyond_the_cap_nothing_is_judged_and_the_deadline_ends_it(site: Deployment) -> None:
    trusted, honest = await challenged_host(site)
    asked = question(site, "host", "h1")
    foreign = host_evidence(site, asked, asked, machine="machine-b")
    for _ in range(MAX_VERIFICATIONS + 2):
        site.wire.inject(honest[0], foreign)
        await site.quiet()
    assert site.what("host", "h1").count("evidence-rejected") == MAX_VERIFICATIONS
    assert site.dropped_codes() == ["evidence.cap"] * 2
    trusted.cancel()
    await asyncio.wait([trusted])
    await site.advance(site.timing.evidence_window_s + site.timing.skew_s)
    await site.until("host", "h1", "expired")


@threat(rows.ID_CLAIMED)
async def test_an_enclave_of_another_host_claims_this_hosts_id(site: Deployment) -> None:
    """Even with its credential: the owner's session is untouched, and the claim is never trusted."""
    await site.admitted()
    (owner,) = await site.records(HostRecord)
    await site.advance(2)
    since = len(site.events)
    await site.host("h1", "machine-b")
    assert event_code(await site.until("host", "h1", "evidence-rejected", since=since)) == "host.platform"
    await site.quiet()
    assert (await site.record(HostRecord, owner.session)).state is State.TRUSTED
    assert site.gateway.passes("a1")
    assert "trusted" not in site.what("host", "h1", since=since)


@threat(rows.APP_CLAIMED)
async def test_an_application_of_another_host_claims_this_applications_id(site: Deployment) -> None:
    await site.admitted()
    await site.enrol_host("h2", "machine-b")
    await site.host("h2", "machine-b")
    await site.until("host", "h2", "trusted")
    (owner,) = await site.records(AppRecord)
    since = len(site.events)
    await site.advance(2)
    await site.app("a1", "h1", "machine-b")
    assert event_code(await site.until("app", "a1", "evidence-rejected", since=since)).startswith("colocation.")
    await site.app("a1", "h2", "machine-b")
    assert event_code(await site.until("app", "a1", "dropped", since=since)) == "enrolment.placement"
    assert (await site.record(AppRecord, owner.session)).state is State.ADMITTED
    assert site.gateway.passes("a1")


@threat(rows.ID_CLAIMED)
@pytest.mark.parametrize("role", ["host", "app"])
async def test_a_hello_for_another_id_than_its_subjects(site: Deployment, role: Role) -> None:
    await site.admitted()
    hello: Any = (
        HostHello(version=PROTOCOL, host="h2", random=bytes(32), boot_id="", agent_version="x", can_give=[])
        if role == "host"
        else AppHello(version=PROTOCOL, app="a2", host="h1", random=bytes(32), agent_version="x")
    )
    site.wire.inject(subjects.inbound(role, "h1" if role == "host" else "h1.a1", "hello"), pack(hello))
    await site.dropped(1)
    assert site.dropped_codes() == ["hello.id"]


@threat(rows.ID_CLAIMED)
async def test_one_subject_cannot_speak_in_another_subjects_session(site: Deployment) -> None:
    """Every message of h1 and a1, played on the subjects of h2 and a2."""
    await site.admitted()
    said = [(s, d) for s, d in site.wire.seen if subjects.matches(f"{subjects.IN}.>", s)]
    count = 0
    for subject, data in said:
        role, name, step = subjects.parse_inbound(subject)
        if role != "gateway" and step != "hello":
            site.wire.inject(subjects.inbound(role, {"h1": "h2", "h1.a1": "h1.a2"}[name], step), data)
            count += 1
            await site.dropped(count)
    assert set(site.dropped_codes()) == {"message.owner"}


@threat(rows.EVIDENCE_FOREIGN)
async def test_evidence_in_a_name_that_is_rejected_is_told_to_its_sender_only(site: Deployment) -> None:
    """The signed notice names the bytes it is about: an agent believes it of its own alone."""
    trusted, honest = await challenged_host(site)
    asked = question(site, "host", "h1")
    foreign = host_evidence(site, asked, asked, machine="machine-b")
    site.wire.inject(honest[0], foreign)
    await site.until("host", "h1", "evidence-rejected")
    (notice,) = site.wire.said(subjects.outbound("host", "h1", "rejected"))
    assert digest("rejected evidence", foreign) in unpack(Signed, notice).payload
    site.wire.inject(*honest)
    await trusted


@threat(rows.SESSIONS_WITHOUT_END)
async def test_hellos_come_too_fast(site: Deployment) -> None:
    await site.enrol_host()
    for number in range(4):
        hello = HostHello(
            version=PROTOCOL, host="h1", random=bytes([number]) * 32, boot_id="", agent_version="x", can_give=[]
        )
        site.wire.inject(subjects.inbound("host", "h1", "hello"), pack(hello))
        await site.quiet()
    assert site.dropped_codes() == ["hello.rate"] * 3
    assert len(await site.records(HostRecord)) == 1


@threat(rows.SESSIONS_WITHOUT_END)
async def test_sessions_are_opened_without_end(site: Deployment) -> None:
    """One a second is not too fast, but a session leaves a record, events and, judged, an entry of the decision log."""
    await site.enrol_host()
    for number in range(SESSIONS_AT_ONCE + 9):
        hello = HostHello(
            version=PROTOCOL, host="h1", random=bytes([number]) * 32, boot_id="", agent_version="x", can_give=[]
        )
        site.wire.inject(subjects.inbound("host", "h1", "hello"), pack(hello))
        await site.quiet()
        site.clock.at += 1
    opened = SESSIONS_AT_ONCE + int((SESSIONS_AT_ONCE + 8) * SESSIONS_A_SECOND)
    assert len(await site.records(HostRecord)) == opened
    assert site.dropped_codes() == ["hello.rate"] * (SESSIONS_AT_ONCE + 9 - opened)


async def test_a_clock_that_was_set_back_makes_no_hello_come_too_fast(site: Deployment) -> None:
    await site.enrol_host()
    for number in range(2):
        hello = HostHello(
            version=PROTOCOL, host="h1", random=bytes([number]) * 32, boot_id="", agent_version="x", can_give=[]
        )
        site.wire.inject(subjects.inbound("host", "h1", "hello"), pack(hello))
        await site.quiet()
        site.clock.at += HELLOS_A_SECOND
        site.managers_clock.set_by(-600)
    assert site.dropped_codes() == []
    assert len(await site.records(HostRecord)) == 2


@threat(rows.ID_CLAIMED)
async def test_a_newer_hello_replaces_a_handshake_but_never_a_live_session(site: Deployment) -> None:
    await site.admitted()
    (live,) = await site.records(HostRecord)
    for number in range(3):
        await site.advance(2)
        hello = HostHello(
            version=PROTOCOL, host="h1", random=bytes([number]) * 32, boot_id="", agent_version="x", can_give=[]
        )
        site.wire.inject(subjects.inbound("host", "h1", "hello"), pack(hello))
        await site.quiet()
    states = {r.session: r.state for r in await site.records(HostRecord)}
    assert states.pop(live.session) is State.TRUSTED
    assert sorted(states.values()) == [State.CHALLENGED, State.SUPERSEDED, State.SUPERSEDED]
