"""DCAP collateral: what it is, and what a set of it says once its signatures have been checked under a root.

TCB info and QE identity are Intel's JSON documents (PCS API v4, "Get SGX TCB Info", "Get Quoting Enclave Identity"),
signed by ECDSA P-256 over the exact text; the CRLs are X.509 (RFC 5280). dcap_qvl verifies all of it again with each
quote: this examination gives each failure a reason of its own, and the validity times that dcap_qvl does not
report. It does not depend on the time, so it is done once for a set and cached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, NoReturn, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic import Field

from attestgate.manager.verification.sgx.tcb import QE_STATUSES, qe_levels_fit
from attestgate.manager.verification.x509 import (
    Window,
    below,
    certificates,
    check_chain,
    name,
    public_key,
    root_certificate,
    windows,
)
from attestgate.schemas.base import Bytes64, Model, Reason, Refusal, shown

FETCH_AGAIN = "fetch the collateral again from the provisioning certification service"
"""What to do about a piece that does not hold up."""

MAX_PIECE = 1024 * 1024
"""Largest piece of collateral, in bytes: a PCK CRL grows with what it revokes."""

Text = Annotated[str, Field(max_length=MAX_PIECE)]
Der = Annotated[bytes, Field(max_length=MAX_PIECE)]
T = TypeVar("T")


class Collateral(Model):
    """What a quote is verified against, in dcap_qvl's JSON form (chains in PEM, CRLs in DER, bytes in hexadecimal)."""

    pck_crl_issuer_chain: Text
    root_ca_crl: Der
    pck_crl: Der
    tcb_info_issuer_chain: Text
    tcb_info: Text
    tcb_info_signature: Bytes64
    qe_identity_issuer_chain: Text
    qe_identity: Text
    qe_identity_signature: Bytes64
    pck_certificate_chain: Text | None = None
    """What dcap_qvl's fetcher may add. Not used: a quote is judged by the chain that it carries itself."""


@dataclass(frozen=True)
class Document:
    """TCB info or QE identity, its signature verified. `issued` is a Unix second."""

    issued: int
    evaluation_number: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Crl:
    """A CRL, its signature verified. `issued` (thisUpdate) is a Unix second; `number` is the CRL number extension."""

    issued: int
    number: int
    issuer: str
    issuer_key: bytes
    """The issuer's public key (SubjectPublicKeyInfo, DER)."""
    list: x509.CertificateRevocationList

    def revokes(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate's serial number is in the list."""
        return self.list.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


@dataclass(frozen=True)
class Examined:
    """What a set of collateral says. A piece that did not hold up is None, and `reasons` says why."""

    reasons: tuple[Reason, ...]
    windows: tuple[Window, ...]
    tcb_info: Document | None
    qe_identity: Document | None
    pck_crl: Crl | None
    root_ca_crl: Crl | None

    def opens(self) -> int:
        """The Unix second from which on all of it is valid."""
        return max((window.opens for window in self.windows), default=0)

    def closes(self) -> int:
        """The last Unix second at which all of it is valid."""
        return min((window.closes for window in self.windows), default=0)

    def issued(self) -> dict[str, int]:
        """When each piece that is renewed was issued, by its name."""
        pieces = {
            "tcb_info": self.tcb_info,
            "qe_identity": self.qe_identity,
            "pck_crl": self.pck_crl,
            "root_ca_crl": self.root_ca_crl,
        }
        return {name: piece.issued for name, piece in pieces.items() if piece is not None}


@lru_cache(maxsize=64)
def examine(collateral: Collateral, root_der: bytes) -> Examined:
    """Check every signature and form in a set of collateral. Never raises: what is wrong is in `reasons`."""
    reasons: list[Reason] = []
    opened: list[Window] = []

    def attempt(piece: Callable[[], T]) -> T | None:
        try:
            return piece()
        except Refusal as refusal:
            reasons.extend(refusal.reasons)
            return None

    root = attempt(lambda: root_certificate(root_der))
    if root is None:
        return Examined(tuple(reasons), (), None, None, None, None)
    opened.extend(windows([root], "root"))
    root_crl = attempt(lambda: _crl(collateral.root_ca_crl, [root], root, "root_ca_crl", opened))
    signer = _Signer(root, root_crl, opened)
    tcb_info = attempt(
        lambda: signer.document(
            "tcb_info", collateral.tcb_info, collateral.tcb_info_signature, collateral.tcb_info_issuer_chain
        )
    )
    qe_identity = attempt(
        lambda: signer.document(
            "qe_identity", collateral.qe_identity, collateral.qe_identity_signature, collateral.qe_identity_issuer_chain
        )
    )
    pck_chain = collateral.pck_crl_issuer_chain.encode()
    pck_crl = attempt(
        lambda: _crl(collateral.pck_crl, certificates(pck_chain, "collateral.pck_crl"), root, "pck_crl", opened)
    )
    return Examined(tuple(reasons), tuple(opened), tcb_info, qe_identity, pck_crl, root_crl)


_FORMS: dict[str, dict[str, Any]] = {
    # version first: version 2 TCB info has no id, and its version is the thing to say
    "tcb_info": {"version": 3, "id": "SGX", "tcbType": 0},
    "qe_identity": {"version": 2, "id": "QE"},
}


@dataclass(frozen=True)
class _Signer:
    root: x509.Certificate
    root_crl: Crl | None
    opened: list[Window]

    def document(self, piece: str, text: str, signature: bytes, chain_pem: str) -> Document:
        chain = certificates(chain_pem.encode(), f"collateral.{piece}")
        check_chain(chain, self.root, f"collateral.{piece}")
        self.opened.extend(windows(below(chain, self.root), f"collateral.{piece}"))
        self._check_signer(piece, chain)
        _check_signature(piece, chain[0], text, signature)
        body = _json(piece, text)
        issued, expires = _time(piece, body, "issueDate"), _time(piece, body, "nextUpdate")
        self.opened.append(Window(f"collateral.{piece}", f"collateral.{piece}.nextUpdate", issued, expires))
        # The signer also signs TDX documents, which say nothing about SGX; and False == 0 in Python, so a boolean
        # would pass for a number.
        for key, expected in _FORMS[piece].items():
            if body.get(key) != expected or isinstance(body.get(key), bool):
                _bad(piece, key, expected, body.get(key))
        number = body.get("tcbEvaluationDataNumber")
        if type(number) is not int or number < 0:
            _bad(piece, "tcbEvaluationDataNumber", "a number", number)
        if piece == "qe_identity" and not qe_levels_fit(body):
            expected = f"levels from the highest ISVSVN down, each {' or '.join(sorted(QE_STATUSES))}"
            _bad(piece, "tcbLevels", expected, body.get("tcbLevels"))
        return Document(issued, number, body)

    def _check_signer(self, piece: str, chain: tuple[x509.Certificate, ...]) -> None:
        # A PCK leaf chains to the same root. Only a signer that the root itself issued speaks about TCBs.
        if len(below(chain, self.root)) != 1:
            _bad(piece, "issuer_chain", "a signing certificate issued by the root", f"{name(chain[0])}")
        if self.root_crl is not None and self.root_crl.revokes(chain[0]):
            _bad(piece, "revoked", "a signing certificate that is not revoked", name(chain[0]))


def _check_signature(piece: str, signer: x509.Certificate, text: str, signature: bytes) -> None:
    key = signer.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        _bad(piece, "signature", "an ECDSA key", type(key).__name__)
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, text.encode(), ECDSA(SHA256()))
    except InvalidSignature:
        _bad(piece, "signature", f"a signature by {name(signer)}", "a signature that does not verify")


def _crl(
    der: bytes, chain: Sequence[x509.Certificate], root: x509.Certificate, piece: str, opened: list[Window]
) -> Crl:
    # The issuer itself need not be a CA here: a list counts only if its key is the PCK CA's (`_misfits`) or the root's.
    check_chain(chain, root, f"collateral.{piece}")
    opened.extend(windows(below(chain, root), f"collateral.{piece}"))
    issuer = chain[0]
    try:
        crl = x509.load_der_x509_crl(der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        issued, expires = crl.last_update_utc, crl.next_update_utc
        valid = crl.issuer == issuer.subject and crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001  cryptography has errors of many kinds for a CRL, some plain Exceptions
        _bad(piece, "malformed", "an X.509 CRL in DER with a CRL number", shown(error))
    if expires is None:
        _bad(piece, "malformed", "a CRL with nextUpdate", "a CRL without it")
    if not valid:
        _bad(
            piece,
            "signature",
            f"a CRL signed by {name(issuer)}",
            f"a CRL of {crl.issuer.rfc4514_string()}, or a bad signature",
        )
    window = Window(f"collateral.{piece}", f"collateral.{piece}.nextUpdate", _unix(issued), _unix(expires))
    opened.append(window)
    return Crl(window.opens, number, name(issuer), public_key(issuer), crl)


def _json(piece: str, text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        _bad(piece, "malformed", "a JSON document", shown(error))
    if not isinstance(body, dict):
        _bad(piece, "malformed", "a JSON object", type(body).__name__)
    return body


def _time(piece: str, body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    try:
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        _bad(piece, key, "a time as RFC 3339", value)
    return _unix(parsed)


def _unix(moment: datetime) -> int:
    return int(moment.timestamp())


def _bad(piece: str, code: str, expected: object, found: object) -> NoReturn:
    raise Refusal.because(
        f"collateral.{piece}.{code}",
        f"collateral.{piece}",
        expected=expected,
        found=found,
        action=FETCH_AGAIN,
    )
