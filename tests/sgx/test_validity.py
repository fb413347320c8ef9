"""Before, inside and after the validity of each piece, with five seconds' allowance: its own reason, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.clocks import SKEW_S
from tests.support.reasons import codes
from tests.support.sgx.simulated import NOW, SimulatedSgx
from tests.support.sgx.turned import crl, issuer, reissued, rfc3339, signed, with_chain
from tests.support.threats import rows, threat

OPENS, CLOSES = NOW - 100, NOW + 100
Evidence = tuple[bytes, Collateral]


def pem(*chain: x509.Certificate) -> str:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain).decode()


def document(piece: str) -> Callable[[SimulatedSgx], Evidence]:
    def made(sgx: SimulatedSgx) -> Evidence:
        return sgx.quote(), signed(sgx, piece, issueDate=rfc3339(OPENS), nextUpdate=rfc3339(CLOSES))

    return made


def pck_crl(sgx: SimulatedSgx) -> Evidence:
    return sgx.quote(), sgx.collateral(pck_crl=crl(issuer(sgx, "platform"), opens=OPENS, closes=CLOSES))


def root_ca_crl(sgx: SimulatedSgx) -> Evidence:
    return sgx.quote(), sgx.collateral(root_ca_crl=crl(issuer(sgx, "root"), opens=OPENS, closes=CLOSES))


def leaf(sgx: SimulatedSgx) -> Evidence:
    quote = sgx.quote()
    old, ca, root = parse(quote).pck.chain
    new = reissued(old, issuer(sgx, "platform").key, OPENS, CLOSES)
    return with_chain(quote, new, ca, root), sgx.collateral()


def ca_in_the_quote(sgx: SimulatedSgx) -> Evidence:
    quote = sgx.quote()
    first, old, root = parse(quote).pck.chain
    return with_chain(quote, first, reissued(old, issuer(sgx, "root").key, OPENS, CLOSES), root), sgx.collateral()


def ca_of_the_crl(sgx: SimulatedSgx) -> Evidence:
    root = issuer(sgx, "root")
    new = reissued(issuer(sgx, "platform").certificate, root.key, OPENS, CLOSES)
    return sgx.quote(), sgx.collateral(pck_crl_issuer_chain=pem(new, root.certificate))


def tcb_signing(chain: str) -> Callable[[SimulatedSgx], Evidence]:
    def made(sgx: SimulatedSgx) -> Evidence:
        root = issuer(sgx, "root")
        new = reissued(issuer(sgx, "tcb_signing").certificate, root.key, OPENS, CLOSES)
        return sgx.quote(), sgx.collateral(NOW, **{chain: pem(new, root.certificate)})

    return made


PIECES: dict[str, tuple[Callable[[SimulatedSgx], Evidence], str]] = {
    "TCB info": (document("tcb_info"), "collateral.tcb_info"),
    "QE identity": (document("qe_identity"), "collateral.qe_identity"),
    "PCK CRL": (pck_crl, "collateral.pck_crl"),
    "root CA CRL": (root_ca_crl, "collateral.root_ca_crl"),
    "PCK leaf": (leaf, "quote.pck_chain.certificate"),
    "PCK CA": (ca_in_the_quote, "quote.pck_chain.certificate"),
    "PCK CA of the CRL": (ca_of_the_crl, "collateral.pck_crl.certificate"),
    "TCB signing of TCB info": (tcb_signing("tcb_info_issuer_chain"), "collateral.tcb_info.certificate"),
    "TCB signing of QE identity": (tcb_signing("qe_identity_issuer_chain"), "collateral.qe_identity.certificate"),
}


@threat(rows.COLLATERAL_OLD)
@pytest.mark.parametrize("piece", PIECES)
def test_the_validity_of_each_piece(shared: SimulatedSgx, piece: str) -> None:
    made, code = PIECES[piece]
    quote, collateral = made(shared)
    expected = {
        OPENS - SKEW_S - 1: [f"{code}.not_yet_valid"],
        OPENS - SKEW_S: [],
        OPENS: [],
        NOW: [],
        CLOSES: [],
        CLOSES + SKEW_S: [],
        CLOSES + SKEW_S + 1: [f"{code}.expired"],
    }
    assert {at: codes(shared.appraise(quote, collateral, at=at)) for at in expected} == expected


@threat(rows.COLLATERAL_OLD)
def test_the_validity_of_the_root(shared: SimulatedSgx) -> None:
    root = issuer(shared, "root")
    new = reissued(root.certificate, root.key, OPENS, CLOSES)
    leaf_, ca, _ = parse(shared.quote()).pck.chain
    quote = with_chain(shared.quote(), leaf_, ca, new)
    collateral = shared.collateral(
        pck_crl_issuer_chain=pem(ca, new),
        tcb_info_issuer_chain=pem(issuer(shared, "tcb_signing").certificate, new),
        qe_identity_issuer_chain=pem(issuer(shared, "tcb_signing").certificate, new),
    )
    der = new.public_bytes(Encoding.DER)
    expected = {
        OPENS - SKEW_S - 1: ["root.certificate.not_yet_valid"],
        OPENS: [],
        CLOSES + SKEW_S: [],
        CLOSES + SKEW_S + 1: ["root.certificate.expired"],
    }
    assert {at: codes(shared.appraise(quote, collateral, at=at, root_der=der)) for at in expected} == expected
