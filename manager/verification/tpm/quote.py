"""A TPM 2.0 quote: parsed strictly, its signature, nonce and PCR values checked.

Source: TCG TPM 2.0 Library, Part 2: 10.12.8 TPMS_ATTEST, 10.12.1 TPMS_QUOTE_INFO, 10.11.1 TPMS_CLOCK_INFO,
10.9.7 TPML_PCR_SELECTION, 11.3.4 TPMT_SIGNATURE; Part 3: 18.4 TPM2_Quote. All integers are big-endian.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestgate.schemas.base import Refusal
from attestgate.schemas.binding import same
from attestgate.schemas.host_policy import BANKS, BOOT_PCRS, IMA_PCR, Bank, GoldenPcrs

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
Selection = tuple[tuple[Bank, tuple[int, ...]], ...]
"""The PCRs that a quote is over, bank by bank in the order of their values."""

MAGIC = 0xFF544347
ATTEST_QUOTE = 0x8018
RSASSA, RSAPSS, ECDSA = 0x0014, 0x0016, 0x0018
MAX_STRUCTURE = 4096
"""Longest structure read, in bytes: a quote is under 300, a signature under 600."""

PCR_COUNT = 24
"""PCRs that a PC Client TPM has."""

MIN_RSA_BITS = 2048

_BANKS: dict[int, Bank] = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384"}
_HASHES: dict[int, hashes.HashAlgorithm] = {0x000B: hashes.SHA256(), 0x000C: hashes.SHA384(), 0x000D: hashes.SHA512()}
"""Signing hashes by TPM_ALG_ID. A signature over SHA-1 is not accepted."""


@dataclass(frozen=True, slots=True)
class Attest:
    """A quote as the TPM made it, nothing of it checked yet.

    `clock_ms` counts milliseconds of power; `reset_count` rises at each boot of the TPM, `restart_count` at each
    resume; `safe` is false after an unorderly shutdown until the clock has caught up.
    """

    qualified_signer: bytes
    nonce: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selection: Selection
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class QuotedPcrs:
    """PCR values by bank that a verified quote vouches for, and the quote. `bank` is the strongest that has PCR 10."""

    banks: dict[Bank, dict[int, bytes]]
    attest: Attest

    @property
    def bank(self) -> Bank:
        """The bank that a measurement list is replayed in first."""
        return max(self.banks, key=lambda bank: (IMA_PCR in self.banks[bank], BANKS.index(bank)))

    @property
    def values(self) -> dict[int, bytes]:
        """The PCR values of that bank."""
        return self.banks[self.bank]

    def boot_aggregate(self, bank: str) -> bytes | None:
        """The hash of PCR 0-9 in a bank as IMA computes it (PCR 0-7 for SHA-1), or None if they are not quoted."""
        covered = range(8 if bank == "sha1" else 10)
        for quoted, values in self.banks.items():
            if quoted == bank and values.keys() >= set(covered):
                return hashlib.new(bank, b"".join(values[index] for index in covered)).digest()
        return None

    def boot(self, bank: Bank) -> list[str] | None:
        """PCR 0-9 of a bank in hexadecimal, as golden values are kept; None if they are not all quoted."""
        values = self.banks.get(bank, {})
        return [values[index].hex() for index in BOOT_PCRS] if values.keys() >= set(BOOT_PCRS) else None


def verify_quote(message: bytes, signature: bytes, pcrs: bytes, key: AttestationKey, nonce: bytes) -> QuotedPcrs:
    """The PCR values of a quote, once its signature, nonce and digest fit. Raises Refusal (`tpm.*`).

    `message` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE or, for ECDSA, plain DER; `pcrs` the values end to end in
    the order of the quote's selection. The signature is checked before anything in the quote is believed.
    """
    attest = parse_attest(message)
    # qualifiedSigner is not looked at: the enrolled key is at hand, and only it verifies.
    _check_signature(message, signature, key, len(attest.pcr_digest))
    # Stops a quote of an earlier session or challenge: replay.
    if not same(attest.nonce, nonce):
        raise refused("tpm.nonce", "extraData", nonce, attest.nonce, "quote again with the nonce of this challenge")
    return quoted_values(attest, pcrs)


def quoted_values(attest: Attest, pcrs: bytes) -> QuotedPcrs:
    """The values behind a quote's digest, from their bytes end to end in selection order. Raises Refusal (`tpm.*`)."""
    sizes = [(bank, hashlib.new(bank).digest_size, selected) for bank, selected in attest.selection]
    if len(pcrs) != sum(size * len(selected) for _, size, selected in sizes):
        expected = " and ".join(f"{len(selected)} values of {size} bytes" for _, size, selected in sizes)
        raise refused("tpm.pcr_values", "PCR values", expected, f"{len(pcrs)} bytes", "send the values of this quote")
    digest = _HASH_BY_SIZE[len(attest.pcr_digest)]
    # Sizes come from the signed selection, so the bytes under the digest fall apart into values in one way only.
    if not same(hashlib.new(digest.name, pcrs).digest(), attest.pcr_digest):
        raise refused(
            "tpm.pcr_digest", "pcrDigest", attest.pcr_digest, "another digest", "send the values that were quoted"
        )
    reader = Reader(pcrs, "PCR values")
    banks = {bank: {index: reader.take(size) for index in selected} for bank, size, selected in sizes}
    return QuotedPcrs(banks=banks, attest=attest)


def golden_pcrs(values: bytes, bank: Bank) -> GoldenPcrs:
    """PCR 0-9 of a good boot, out of PCR values end to end that begin at PCR 0. Raises Refusal (`tpm.golden`)."""
    size, count = hashlib.new(bank).digest_size, len(BOOT_PCRS)
    if len(values) % size or not count * size <= len(values) <= PCR_COUNT * size:
        expected = f"the {bank} values of PCR 0 to 9 at least, {size} bytes each"
        raise refused("tpm.golden", "golden values", expected, f"{len(values)} bytes", "save them beside a quote")
    return GoldenPcrs(bank=bank, values=[values[at * size : (at + 1) * size].hex() for at in BOOT_PCRS])


def read_key(pem: bytes) -> AttestationKey:
    """An attestation key from PEM. Raises Refusal (`tpm.key`)."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise refused("tpm.key", "AK", "a public key in PEM", "not such a key", "export the AK as PEM") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    raise refused(
        "tpm.key", "AK", f"RSA of {MIN_RSA_BITS} bits or more, P-256 or P-384", "another key", "create a stronger AK"
    )


def parse_attest(message: bytes) -> Attest:
    """Read a TPMS_ATTEST that is a quote. Raises Refusal (`tpm.*`)."""
    read = Reader(message, "TPMS_ATTEST")
    magic = read.number(4)
    # A restricted key signs no outside data that begins so (Part 2, 6.2 TPM_GENERATED): stops a quote that software
    # made up (CVE-2024-29038).
    if magic != MAGIC:
        raise refused("tpm.magic", "TPMS_ATTEST.magic", hex(MAGIC), hex(magic), "send what the TPM signed")
    kind = read.number(2)
    # The AK also signs what TPM2_Certify and its like make, with the caller's own bytes in it: no quote.
    if kind != ATTEST_QUOTE:
        raise refused("tpm.type", "TPMS_ATTEST.type", hex(ATTEST_QUOTE), hex(kind), "send a quote")
    signer, nonce = read.sized(), read.sized()
    clock, resets, restarts, safe = read.number(8), read.number(4), read.number(4), read.number(1)
    if safe > 1:
        raise refused("tpm.clock", "clockInfo.safe", "0 or 1", safe, "send what the TPM signed")
    firmware = read.number(8)
    selection = _selection(read)
    digest = read.sized()
    read.end()
    if len(digest) not in _HASH_BY_SIZE:
        raise refused("tpm.hash", "pcrDigest", "SHA-256, SHA-384 or SHA-512", f"{len(digest)} bytes", "use another AK")
    return Attest(signer, nonce, clock, resets, restarts, bool(safe), firmware, selection, digest)


def _selection(read: Reader) -> Selection:
    """TPML_PCR_SELECTION: some PCRs, each bank once; a bank that the TPM does not have is listed without any."""
    field, action = "pcrSelect", "quote PCR 0-10 of one bank"
    count = read.number(4)
    if not 1 <= count <= len(_BANKS):
        raise refused("tpm.selection", field, f"one to {len(_BANKS)} banks", f"{count} banks", action)
    selection: dict[Bank, tuple[int, ...]] = {}
    for _ in range(count):
        bank = _BANKS.get(algorithm := read.number(2))
        if bank is None:
            raise refused("tpm.bank", field, "SHA-1, SHA-256 or SHA-384", hex(algorithm), action)
        bitmap = int.from_bytes(read.take(read.number(1)), "little")
        pcrs = tuple(index for index in range(bitmap.bit_length()) if bitmap >> index & 1)
        if bank in selection or bitmap >> PCR_COUNT:
            raise refused("tpm.selection", field, f"PCRs below {PCR_COUNT}, each bank once", pcrs, action)
        selection[bank] = pcrs
    quoted = tuple((bank, pcrs) for bank, pcrs in selection.items() if pcrs)
    if not quoted:
        raise refused("tpm.selection", field, "some PCRs", "none", action)
    return quoted


def _check_signature(message: bytes, signature: bytes, key: AttestationKey, digest_size: int) -> None:
    """Raise Refusal (`tpm.signature`) unless `key` signed `message`; the hash is the one that made pcrDigest."""
    action = "quote with the enrolled AK"
    try:
        if signature[:1] == b"\x30":
            scheme, hashed, made = ECDSA, _HASH_BY_SIZE[digest_size], signature
        else:
            scheme, hashed, made = _tpmt_signature(signature)
        # TPM2_Quote makes pcrDigest with the signing scheme's hash (Part 3, 18.4): two hashes are no quote of a TPM.
        if hashed.digest_size != digest_size:
            raise refused("tpm.signature", "hash", f"{digest_size} bytes, as pcrDigest", hashed.name, action)
        if scheme == ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(made, message, ec.ECDSA(hashed))
        elif scheme == RSASSA and isinstance(key, rsa.RSAPublicKey):
            key.verify(made, message, padding.PKCS1v15(), hashed)
        elif scheme == RSAPSS and isinstance(key, rsa.RSAPublicKey):
            # TPMs salt as long as the hash or as long as fits (Part 1, B.7): AUTO takes both
            key.verify(made, message, padding.PSS(padding.MGF1(hashed), padding.PSS.AUTO), hashed)
        else:
            raise refused("tpm.signature", "scheme", "one that fits the AK", hex(scheme), action)
    except InvalidSignature:
        raise refused("tpm.signature", "signature", "a valid signature by the AK", "an invalid one", action) from None


def _tpmt_signature(signature: bytes) -> tuple[int, hashes.HashAlgorithm, bytes]:
    """Scheme, hash and signature of a TPMT_SIGNATURE; ECDSA's as DER."""
    read = Reader(signature, "TPMT_SIGNATURE")
    scheme = read.number(2)
    if scheme not in {RSASSA, RSAPSS, ECDSA}:
        raise refused("tpm.signature", "sigAlg", "RSASSA, RSAPSS or ECDSA", hex(scheme), "use an AK of that kind")
    hashed = _HASHES.get(algorithm := read.number(2))
    if hashed is None:
        raise refused("tpm.signature", "hash", "SHA-256, SHA-384 or SHA-512", hex(algorithm), "use another AK")
    made = read.sized()
    if scheme == ECDSA:
        made = encode_dss_signature(int.from_bytes(made, "big"), int.from_bytes(read.sized(), "big"))
    read.end()
    return scheme, hashed, made


class Reader:
    """Big-endian fields of one TPM structure, one after another; refuses what is short or left over."""

    def __init__(self, data: bytes, name: str) -> None:
        if len(data) > MAX_STRUCTURE:
            raise refused("tpm.size", name, f"at most {MAX_STRUCTURE} bytes", len(data), "send what the TPM made")
        self._data, self._place, self._name = data, 0, name

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        start, self._place = self._place, self._place + size
        if self._place > len(self._data):
            found = f"{len(self._data) - start}"
            raise refused("tpm.truncated", self._name, f"{size} more bytes", found, "send what the TPM made")
        return self._data[start : self._place]

    def number(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """A TPM2B: a length of two bytes, then so many bytes."""
        return self.take(self.number(2))

    def end(self) -> None:
        """Raise Refusal if anything is left."""
        if self._place != len(self._data):
            left = len(self._data) - self._place
            raise refused(
                "tpm.trailing", self._name, "the end of the structure", f"{left} more bytes", "send what the TPM made"
            )


_HASH_BY_SIZE = {hashed.digest_size: hashed for hashed in _HASHES.values()}


def refused(code: str, field: str, expected: object, found: object, action: str) -> Refusal:
    """A refusal of what a TPM made, or is said to have made."""
    return Refusal.because(code, f"TPM, {field}", expected=expected, found=found, action=action)
