"""What crosses a boundary about a TPM: the quote beside a measurement list, and the files of its enrolment.

`attestgate tpm --help` describes enrolment step by step. None of its files holds a secret but the host's answer, and
that gives access to nothing: it only proves that AK and EK are in one TPM.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from attestgate.schemas.base import Hex32, Model
from attestgate.schemas.host_policy import GoldenPcrs

MAX_CERTIFICATE = 4096
HexBytes = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{2}){1,4096}$", max_length=8192)]


class TpmQuote(Model):
    """A quote over PCR 0-10 of one bank, made before the measurement list was read.

    `message` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE, `pcrs` the PCR values concatenated in selection order.
    """

    message: Annotated[bytes, Field(max_length=1024)]
    signature: Annotated[bytes, Field(max_length=1024)]
    pcrs: Annotated[bytes, Field(max_length=1536)]


class TpmEnrolment(Model):
    """The TPM that a host id is pinned to.

    `ek_certificate` is the SHA-256 of its endorsement key's certificate (DER), `ak` its attestation key (TPMT_PUBLIC),
    which was proven to be in that TPM. `golden` are PCR 0-9 of every approved boot, including the next kernel's before
    an update.
    """

    ek_certificate: Hex32
    ak: Annotated[bytes, Field(min_length=1, max_length=1024)]
    golden: Annotated[list[GoldenPcrs], Field(max_length=16)]


class TpmClock(Model):
    """TPMS_CLOCK_INFO of the newest quote, which must not go back. `clock_ms` counts milliseconds of powered time."""

    reset_count: Annotated[int, Field(ge=0, lt=2**32)]
    restart_count: Annotated[int, Field(ge=0, lt=2**32)]
    clock_ms: Annotated[int, Field(ge=0, lt=2**64)]


class TpmDescription(Model):
    """From the host: the EK's certificate (DER) and the AK (TPMT_PUBLIC). Nothing in it is trusted yet."""

    ek_certificate: HexBytes
    ak: HexBytes


class TpmChallenge(Model):
    """To the host: TPM2_MakeCredential's result, which only the TPM with that EK decrypts, and only for that AK.

    `credential_blob` is a TPM2B_ID_OBJECT and `secret` a TPM2B_ENCRYPTED_SECRET, both without their outer length.
    """

    credential_blob: HexBytes
    secret: HexBytes


class TpmKept(Model):
    """What the operator keeps until the host has answered: the TPM challenged, and the SHA-256 of the right answer."""

    ek_certificate: Hex32
    ak: HexBytes
    answer: Hex32


class TpmAnswer(Model):
    """From the host: the result of TPM2_ActivateCredential."""

    credential: Hex32
