"""A real TPM protocol, end to end: enrolment, quotes that anchor a recorded list, reboot, and what must be refused.

The list is the recorded one of a real kernel, but for its entry 0: boot_aggregate is the hash of PCR 0-9, so it is made
again for this TPM's. PCR 10 is extended with every entry's template digest, as the kernel would.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attestgate.cli.tpm import app as tpm_app
from attestgate.compose.demo.kernel import BOOTED, FIRMWARE, enrolled
from attestgate.compose.demo.software_tpm import SoftwareTpm, missing
from attestgate.host_agent import tpm as host_tpm
from attestgate.host_agent.tpm import Tpm
from attestgate.host_agent.tpm_service import TpmService
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.verification.ima.appraisal import appraise_list
from attestgate.manager.verification.tpm.enrolment import challenge, enrolment, golden_from, read_bundle
from attestgate.manager.verification.tpm.evidence import clock, judge_quote
from attestgate.schemas.base import Refusal, read_json
from attestgate.schemas.host_policy import ListVerdict, Replay
from attestgate.schemas.tpm import TpmAnswer, TpmClock, TpmEnrolment, TpmKept
from tests.support.ima.lists import NOW, host, loaded, recorded
from tests.support.manager.deployment import deployed
from tests.support.manager.world import World
from tests.support.reasons import codes
from tests.support.tpm.credentials import OTHER
from tests.support.tpm.hosts import enrol, recheck, start
from tests.support.tpm.soft import remade

if missing():
    pytest.skip("make test-tpm installs tpm2-pytss and swtpm, and runs this", allow_module_level=True)

pytestmark = pytest.mark.stack

CLEAN, DRIFT = remade("clean", BOOTED), remade("drift", BOOTED)
POLICY = loaded(recorded("clean"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    tpm = SoftwareTpm.made(tmp_path_factory.mktemp("machine"))
    tpm.start()
    yield tpm
    tpm.stop()


@pytest.fixture
def booted(machine: SoftwareTpm) -> SoftwareTpm:
    """The machine, just booted, with the clean list measured."""
    machine.reboot()
    machine.measure(FIRMWARE, CLEAN)
    return machine


def roots(machine: SoftwareTpm) -> bytes:
    return read_bundle([path.read_bytes() for path in machine.roots])


def judged(
    machine: SoftwareTpm, record: TpmEnrolment, nonce: bytes, measured: bytes, before: TpmClock | None = None
) -> ListVerdict:
    with Tpm(machine.tcti) as tpm:
        quoted = judge_quote(record, tpm.quote(nonce, "sha256"), nonce, "sha256", before)
    return appraise_list(
        measured, POLICY, host(POLICY), before=Replay.start("sha256"), quoted=quoted, golden=record.golden, at=NOW
    )


def test_enrolment_then_fresh_quotes_anchor_the_list(booted: SoftwareTpm) -> None:
    record = enrolled(booted)
    for nonce in (b"n" * 32, b"m" * 32):
        verdict = judged(booted, record, nonce, CLEAN)
        assert codes(verdict) == [] and verdict.integrity == "anchored"
        assert (verdict.anchored_entries, verdict.boot_state) == (448, "golden")


def test_the_attestation_key_is_the_same_after_a_reboot(machine: SoftwareTpm) -> None:
    with Tpm(machine.tcti) as tpm:
        before = tpm.describe()
    machine.reboot()
    with Tpm(machine.tcti) as tpm:
        assert tpm.describe() == before


def test_each_kind_of_endorsement_key_activates(machine: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = set()
    for kind in ("EK-RSA2048", "EK-HIGH-ECC384"):
        monkeypatch.setattr(host_tpm, "EK_KINDS", (kind,))
        certificates.add(enrolled(machine).ek_certificate)
    assert len(certificates) == 2
    monkeypatch.setattr(host_tpm, "EK_KINDS", ("EK-ECC256",))
    with pytest.raises(Refusal, match=r"tpm\.ek"):
        enrolled(machine)


def test_growth_is_a_tail_until_the_next_quote_and_drift_is_seen(booted: SoftwareTpm) -> None:
    record = enrolled(booted)
    with Tpm(booted.tcti) as tpm:
        quoted = judge_quote(record, tpm.quote(b"n", "sha256"), b"n", "sha256", None)
    booted.measure((), DRIFT[len(CLEAN) :])
    early = appraise_list(
        DRIFT, POLICY, host(POLICY), before=Replay.start("sha256"), quoted=quoted, golden=record.golden, at=NOW
    )
    assert early.anchored_entries == 448 and codes(early) == ["ima.unknown", "ima.violation"]
    later = judged(booted, record, b"m", DRIFT)
    assert later.anchored_entries == 459 and codes(later) == ["ima.unknown", "ima.violation"]
    assert codes(judged(booted, record, b"o", CLEAN)) == ["ima.replay"]


def test_a_reboot_is_a_new_list_and_another_boot_is_not_golden(booted: SoftwareTpm) -> None:
    record = enrolled(booted)
    with Tpm(booted.tcti) as tpm:
        quoted = judge_quote(record, tpm.quote(b"n", "sha256"), b"n", "sha256", None)
    assert quoted is not None
    booted.reboot()
    with pytest.raises(Refusal, match=r"tpm\.reset"):
        judged(booted, record, b"m", CLEAN, clock(quoted))
    assert "ima.replay" in codes(judged(booted, record, b"m", CLEAN))
    booted.measure(FIRMWARE, CLEAN)
    assert codes(judged(booted, record, b"m", CLEAN)) == []
    booted.reboot()
    booted.measure((*FIRMWARE[:9], b"\xee" * 32), CLEAN)
    assert "tpm.boot_state" in codes(judged(booted, record, b"m", CLEAN))


def test_a_clock_that_was_set_back_is_refused(booted: SoftwareTpm) -> None:
    record = enrolled(booted)
    with Tpm(booted.tcti) as tpm:
        quoted = judge_quote(record, tpm.quote(b"n", "sha256"), b"n", "sha256", None)
    assert quoted is not None
    ahead = clock(quoted).model_copy(update={"clock_ms": clock(quoted).clock_ms + 3_600_000})
    with pytest.raises(Refusal, match=r"tpm\.clock"):
        judged(booted, record, b"m", CLEAN, ahead)


def test_another_machines_tpm_is_refused_at_every_step(booted: SoftwareTpm, tmp_path: Path) -> None:
    other = SoftwareTpm.made(tmp_path)
    other.start()
    try:
        record = enrolled(booted)
        with pytest.raises(Refusal, match=r"tpm\.signature"):
            judged(other, record, b"n", CLEAN)
        with Tpm(booted.tcti) as tpm, Tpm(other.tcti) as stranger:
            ours, theirs = tpm.describe(), stranger.describe()
            relayed = ours.model_copy(update={"ak": theirs.ak})
            for description in (ours, theirs, relayed):
                asked, _ = challenge(description, roots(booted) + roots(other), int(time.time()))
                for one, opens in ((tpm, description == ours), (stranger, description == theirs)):
                    if opens:
                        assert len(one.activate(asked)) == 32
                    else:
                        with pytest.raises(Refusal, match=r"tpm\.command"):
                            one.activate(asked)
            with pytest.raises(Refusal, match=r"ek\.root"):
                challenge(theirs, roots(booted), int(time.time()))
            with pytest.raises(Refusal, match=r"ek\.root"):
                challenge(ours, OTHER.bundle, int(time.time()))
    finally:
        other.stop()


def test_the_commands_in_the_order_that_their_help_gives(booted: SoftwareTpm, tmp_path: Path) -> None:
    described, asked, kept, answer = (tmp_path / f"{name}.json" for name in ("described", "asked", "kept", "answer"))
    vendor = [part for path in booted.roots for part in ("--ek-roots", str(path))]
    for arguments in (
        ["describe", "-o", str(described), "--tcti", booted.tcti],
        ["challenge", str(described), *vendor, "-o", str(asked), "--keep", str(kept)],
        ["activate", str(asked), "-o", str(answer), "--tcti", booted.tcti],
        ["quote", "-o", str(tmp_path / "boot"), "--nonce", "6e", "--tcti", booted.tcti],
    ):
        result = CliRunner().invoke(tpm_app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    golden = golden_from((tmp_path / "boot.msg").read_bytes(), (tmp_path / "boot.pcrs").read_bytes())
    record = enrolment(read_json(TpmKept, kept), read_json(TpmAnswer, answer), [golden])
    assert record == enrolled(booted)
    assert codes(judged(booted, record, b"m", CLEAN)) == []


def test_a_tpm_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"tpm\.device"):
        Tpm(f"swtpm:path={tmp_path / 'nothing'}")


async def test_a_host_is_trusted_on_its_tpm_through_the_service(booted: SoftwareTpm, tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    record = enrolled(booted)
    async with deployed(world, tmp_path / "site") as site:
        site.measurement_list.write_bytes(CLEAN)
        await enrol(site, record)
        with Tpm(booted.tcti) as tpm:
            async with await TpmService(tpm, "sha256").start() as service:
                await start(site, service)
                await site.until("host", "h1", "trusted")
                (session,) = await site.records(HostRecord)
                assert session.outcome is not None and session.outcome.integrity == "anchored"
                assert await recheck(site, "rechecked") == []
                site.measurement_list.write_bytes(DRIFT)
                booted.measure((), DRIFT[len(CLEAN) :])
                assert (await recheck(site, "untrusted"))[0].startswith("ima.")
