"""The operator's side of a TPM's enrolment: a challenge that only the described TPM can answer, then its record.

Nothing that the host said is believed before the answer: the EK's certificate chains to a vendor's root, and the
answer shows that the AK is in the TPM with that EK (TPM 2.0 Library, Part 1, 24).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from secrets import token_bytes

from attestgate.manager.verification.tpm.credential import make_credential
from attestgate.manager.verification.tpm.ek import check_ek
from attestgate.manager.verification.tpm.public_area import attestation_key
from attestgate.manager.verification.tpm.quote import parse_attest, quoted_values, refused
from attestgate.schemas.base import Refusal
from attestgate.schemas.binding import same
from attestgate.schemas.host_policy import GoldenPcrs
from attestgate.schemas.tpm import TpmAnswer, TpmChallenge, TpmDescription, TpmEnrolment, TpmKept


def challenge(description: TpmDescription, roots: bytes, at: int) -> tuple[TpmChallenge, TpmKept]:
    """What to send to the host, and what to keep. `roots` are PEM. Raises Refusal (`ek.*`, `tpm.*`)."""
    certificate, area = bytes.fromhex(description.ek_certificate), bytes.fromhex(description.ak)
    ek = check_ek(certificate, roots, at)
    credential = token_bytes(32)
    # The name is a hash over the area, attributes included: the TPM releases the credential only for a key that it has
    # loaded under that name, so the area cannot claim what the key is not.
    blob, secret = make_credential(ek, attestation_key(area).name, credential)
    kept = TpmKept(
        ek_certificate=hashlib.sha256(certificate).hexdigest(),
        ak=description.ak,
        answer=hashlib.sha256(credential).hexdigest(),
    )
    return TpmChallenge(credential_blob=blob.hex(), secret=secret.hex()), kept


def enrolment(kept: TpmKept, answer: TpmAnswer, golden: Sequence[GoldenPcrs]) -> TpmEnrolment:
    """The record, once the host has answered right. Raises Refusal (`tpm.answer`)."""
    given = hashlib.sha256(bytes.fromhex(answer.credential)).digest()
    if not same(given, bytes.fromhex(kept.answer)):
        action = "the AK is not in the TPM with that EK, or the answer is to another challenge"
        raise refused("tpm.answer", "activated credential", "the credential that was sent", "another value", action)
    return TpmEnrolment(ek_certificate=kept.ek_certificate, ak=bytes.fromhex(kept.ak), golden=list(golden))


def golden_from(message: bytes, pcrs: bytes) -> GoldenPcrs:
    """PCR 0-9 of a good boot, from a quote (TPMS_ATTEST) and its PCR values end to end. Raises Refusal (`tpm.*`).

    The values are checked against the quote's digest, so that both are of one boot. That the boot is good is the
    operator's decision: the quote's signature says nothing about it.
    """
    quoted = quoted_values(parse_attest(message), pcrs)
    boot = quoted.boot(quoted.bank)
    if boot is None:
        raise refused("tpm.selection", "pcrSelect", "PCR 0-9 at least", quoted.attest.selection, "quote PCR 0-10")
    return GoldenPcrs(bank=quoted.bank, values=boot)


def read_bundle(files: Sequence[bytes]) -> bytes:
    """Vendors' certificates out of several PEM files."""
    bundle = b"\n".join(files)
    if b"-----BEGIN CERTIFICATE-----" not in bundle:
        raise Refusal.because(
            "ek.root",
            "--ek-roots",
            expected="certificates in PEM",
            found="no certificate",
            action="give the vendor's roots",
        )
    return bundle
