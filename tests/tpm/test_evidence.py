"""A host's quote against its enrolment: who may give none, who must give one, and what it must be."""

from __future__ import annotations

import pytest

from attestgate.manager.verification.ima.appraisal import appraise_list
from attestgate.manager.verification.tpm.evidence import clock, judge_quote
from attestgate.schemas.base import Refusal
from attestgate.schemas.host_policy import Replay
from attestgate.schemas.tpm import TpmClock, TpmEnrolment, TpmQuote
from tests.support.ima.lists import NOW, host, loaded, recorded
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat
from tests.support.tpm.soft import BOOT, SoftTpm, remade

NONCE = b"n" * 32


def quote_refused(
    enrolled: TpmEnrolment | None, given: TpmQuote | None, *, nonce: bytes = NONCE, before: TpmClock | None = None
) -> str:
    with pytest.raises(Refusal) as refusal:
        judge_quote(enrolled, given, nonce, "sha256", before)
    return refusal_code(refusal)


def test_a_fresh_quote_anchors_a_real_list_and_the_boot_is_golden() -> None:
    tpm = SoftTpm(measured=remade("clean"))
    quoted = judge_quote(tpm.enrolment, tpm.quote(NONCE), NONCE, "sha256", None)
    assert quoted is not None
    policy = loaded(recorded("clean"))
    verdict = appraise_list(
        remade("clean"), policy, host(policy), before=Replay.start("sha256"), quoted=quoted,
        golden=tpm.enrolment.golden, at=NOW,
    )  # fmt: skip
    assert verdict.reasons == [] and verdict.integrity == "anchored" and verdict.boot_state == "golden"
    assert verdict.anchored_entries == verdict.entries == 448


@threat(rows.TPM_OTHER)
def test_a_host_gives_a_quote_exactly_if_its_tpm_is_enrolled() -> None:
    tpm = SoftTpm()
    assert judge_quote(None, None, NONCE, "sha256", None) is None
    assert quote_refused(tpm.enrolment, None) == "host.tpm"
    assert quote_refused(None, tpm.quote(NONCE)) == "host.tpm"


@threat(rows.TPM_OTHER)
def test_another_tpm_another_nonce_another_selection_are_refused() -> None:
    tpm, other = SoftTpm(), SoftTpm()
    assert quote_refused(tpm.enrolment, other.quote(NONCE)) == "tpm.signature"
    assert quote_refused(tpm.enrolment, tpm.quote(b"m" * 32)) == "tpm.nonce"
    assert quote_refused(tpm.enrolment, tpm.quote(NONCE, selection=b"\xff\x03\x00")) == "tpm.selection"
    assert quote_refused(tpm.enrolment, tpm.quote(NONCE, selection=b"\x00\x04\x00")) == "tpm.selection"
    with pytest.raises(Refusal, match=r"tpm\.selection"):
        judge_quote(tpm.enrolment, tpm.quote(NONCE), NONCE, "sha384", None)


def test_an_enrolled_key_that_is_no_attestation_key_is_refused() -> None:
    tpm = SoftTpm()
    area = bytearray(tpm.area)
    area[5] ^= 0x01  # restricted
    assert quote_refused(tpm.enrolment.model_copy(update={"ak": bytes(area)}), tpm.quote(NONCE)) == "tpm.ak"


@threat(rows.TPM_OTHER)
def test_clock_and_counters_only_rise_and_a_reset_is_a_new_session() -> None:
    tpm = SoftTpm()
    quoted = judge_quote(tpm.enrolment, tpm.quote(NONCE), NONCE, "sha256", None)
    assert quoted is not None
    before = clock(quoted)
    assert before == TpmClock(reset_count=7, restart_count=0, clock_ms=1005)
    assert judge_quote(tpm.enrolment, tpm.quote(NONCE), NONCE, "sha256", before) is not None
    for change, expected in (
        ({"reset_count": 6}, "tpm.reset"),
        ({"reset_count": 8}, "tpm.clock"),
        ({"restart_count": 1}, "tpm.clock"),
        ({"clock_ms": 10_000}, "tpm.clock"),
    ):
        assert quote_refused(tpm.enrolment, tpm.quote(NONCE), before=before.model_copy(update=change)) == expected
    tpm.restarts += 1
    assert judge_quote(tpm.enrolment, tpm.quote(NONCE), NONCE, "sha256", before) is not None, "a resume is no reboot"


@threat(rows.BOOT_OTHER)
def test_another_boot_is_not_golden_until_it_is_enrolled() -> None:
    tpm = SoftTpm()
    enrolled = tpm.enrolment
    tpm.boot = (*BOOT[:9], bytes(32))
    tpm.measured = remade("clean", tpm.boot)
    policy = loaded(recorded("clean"))
    quoted = judge_quote(enrolled, tpm.quote(NONCE), NONCE, "sha256", None)

    def verdict(record: TpmEnrolment) -> list[str]:
        found = appraise_list(
            tpm.measured, policy, host(policy), before=Replay.start("sha256"), quoted=quoted, golden=record.golden,
            at=NOW,
        )  # fmt: skip
        return [reason.code for reason in found.reasons]

    assert verdict(enrolled) == ["tpm.boot_state"]
    approved = enrolled.model_copy(update={"golden": [*enrolled.golden, *tpm.enrolment.golden]})
    assert verdict(approved) == []
