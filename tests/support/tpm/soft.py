"""A TPM made of a key and a few numbers: the structures that a TPM signs, for tests that need no TPM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from struct import pack

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestgate.compose.demo.kernel import with_boot
from attestgate.manager.verification.ima.measurement_list import entries, replay
from attestgate.manager.verification.tpm.public_area import (
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
)
from attestgate.schemas.host_policy import Bank, GoldenPcrs, Replay
from attestgate.schemas.tpm import TpmEnrolment, TpmQuote
from tests.support.ima.lists import recorded

AK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | 1 << 6 | RESTRICTED | SIGN
ALG_NULL, ECC, SHA256, ECDSA, P256 = 0x0010, 0x0023, 0x000B, 0x0018, 0x0003
BOOT = tuple(hashlib.sha256(bytes([index])).digest() for index in range(10))
"""PCR 0-9 of a machine that has booted."""


def tpm2b(data: bytes) -> bytes:
    return pack(">H", len(data)) + data


def ecc_area(
    key: ec.EllipticCurvePublicKey,
    *,
    attributes: int = AK_ATTRIBUTES,
    scheme: bytes = pack(">HH", ECDSA, SHA256),
    name_alg: int = SHA256,
    symmetric: bytes = pack(">H", ALG_NULL),
    curve: int = P256,
    rest: bytes = b"",
) -> bytes:
    """A TPMT_PUBLIC of an ECC key."""
    point = key.public_numbers()
    head = pack(">HHI", ECC, name_alg, attributes) + tpm2b(b"") + symmetric + scheme + pack(">HH", curve, ALG_NULL)
    return head + tpm2b(point.x.to_bytes(32, "big")) + tpm2b(point.y.to_bytes(32, "big")) + rest


def remade(name: str, boot: tuple[bytes, ...] = BOOT) -> bytes:
    """A recorded list as a host with these PCR 0-9 would have it."""
    return with_boot(recorded(name), boot)


@dataclass
class SoftTpm:
    """Quotes PCR 0-9 as set, and PCR 10 as `measured` extends it."""

    measured: bytes = b""
    boot: tuple[bytes, ...] = BOOT
    resets: int = 7
    restarts: int = 0
    clock_ms: int = 1_000
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    asked: list[bytes] = field(default_factory=list)

    @property
    def area(self) -> bytes:
        """The AK's TPMT_PUBLIC."""
        return ecc_area(self.key.public_key())

    @property
    def enrolment(self) -> TpmEnrolment:
        """The record of a host with this TPM, as it is booted now."""
        golden = GoldenPcrs(bank="sha256", values=[value.hex() for value in self.boot])
        return TpmEnrolment(ek_certificate="ab" * 32, ak=self.area, golden=[golden])

    def quote(self, nonce: bytes, bank: Bank = "sha256", selection: bytes = b"\xff\x07\x00") -> TpmQuote:
        """What TPM2_Quote gives."""
        self.asked.append(nonce)
        self.clock_ms += 5
        pcr10 = replay(Replay.start("sha256"), entries(self.measured)).pcr10["sha256"]
        chosen = [*self.boot, bytes.fromhex(pcr10)]
        bits = int.from_bytes(selection, "little")
        pcrs = b"".join(value for index, value in enumerate(chosen) if bits >> index & 1)
        message = (
            pack(">IH", 0xFF544347, 0x8018)
            + tpm2b(b"\x00\x0b" + bytes(32))
            + tpm2b(nonce)
            + pack(">QIIBQ", self.clock_ms, self.resets, self.restarts, 1, 7)
            + pack(">IHB", 1, SHA256, len(selection))
            + selection
            + tpm2b(hashlib.sha256(pcrs).digest())
        )
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        signature = pack(">HH", ECDSA, SHA256) + tpm2b(r.to_bytes(32, "big")) + tpm2b(s.to_bytes(32, "big"))
        return TpmQuote(message=message, signature=signature, pcrs=pcrs)
