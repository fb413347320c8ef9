"""Each field of TCB info, QE identity and CRLs turned bad in turn, signed under the simulated root: its own reason."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.enclave.simulated import platform
from attestgate.enclave.simulated.authority import OLD_CPUSVN
from attestgate.enclave.simulated.certificates import Issuer
from attestgate.manager.verification.sgx.quote import parse
from tests.support.reasons import codes
from tests.support.sgx.simulated import NOW, SimulatedSgx
from tests.support.sgx.turned import DAY, crl, issuer, reissued, signed, with_chain, with_qe_report
from tests.support.threats import rows, threat

GONE = object()
"""In place of a value: the field is taken away."""
Path = tuple[str | int, ...]

TCB_MALFORMED, QE_MALFORMED = "collateral.tcb_info.malformed", "collateral.qe_identity.malformed"
QE_LEVELS = "collateral.qe_identity.tcbLevels"
SVN: Path = ("tcb", "sgxtcbcomponents", 0, "svn")
TCB_LEVEL: list[tuple[Path, object, str]] = [
    (("tcb",), GONE, TCB_MALFORMED),
    (("tcb",), 1, TCB_MALFORMED),
    (("tcb", "sgxtcbcomponents"), GONE, TCB_MALFORMED),
    (("tcb", "sgxtcbcomponents"), [{"svn": 255}] * 16, "sgx.tcb_status"),
    (("tcb", "sgxtcbcomponents"), [{"svn": 1}] * 15, "sgx.tcb_status"),
    (("tcb", "sgxtcbcomponents"), [{"svn": 1}] * 17, "sgx.tcb_status"),
    (SVN, GONE, TCB_MALFORMED),
    (SVN, "14", TCB_MALFORMED),
    (SVN, 256, TCB_MALFORMED),
    (SVN, -1, TCB_MALFORMED),
    (SVN, 15, "sgx.tcb_status"),
    (("tcb", "pcesvn"), GONE, TCB_MALFORMED),
    (("tcb", "pcesvn"), 65536, TCB_MALFORMED),
    (("tcb", "pcesvn"), 99, "sgx.tcb_status"),
    (("tcbDate",), GONE, TCB_MALFORMED),
    (("tcbDate",), "yesterday", "sgx.tcb_date"),
    (("tcbDate",), "2025-11-12", "sgx.tcb_date"),
    (("tcbStatus",), GONE, TCB_MALFORMED),
    (("tcbStatus",), "Fine", TCB_MALFORMED),
    (("tcbStatus",), "Revoked", "sgx.tcb_revoked"),
    (("tcbStatus",), "OutOfDate", "sgx.tcb_status"),
    (("tcbStatus",), "OutOfDateConfigurationNeeded", "sgx.tcb_status"),
    (("tcbStatus",), "ConfigurationNeeded", "sgx.tcb_status"),
    (("tcbStatus",), "ConfigurationAndSWHardeningNeeded", "sgx.tcb_status"),
    (("advisoryIDs",), "INTEL-SA-00828", TCB_MALFORMED),
    (("advisoryIDs",), [1], TCB_MALFORMED),
]
QE_LEVEL: list[tuple[Path, object, str]] = [
    (("tcb",), GONE, QE_LEVELS),
    (("tcb", "isvsvn"), GONE, QE_LEVELS),
    (("tcb", "isvsvn"), "8", QE_MALFORMED),
    (("tcb", "isvsvn"), 9, "sgx.qe_identity"),
    (("tcbDate",), GONE, QE_MALFORMED),
    (("tcbDate",), "yesterday", "sgx.tcb_date"),
    (("tcbStatus",), GONE, QE_LEVELS),
    (("tcbStatus",), "Fine", QE_LEVELS),
    (("tcbStatus",), "SWHardeningNeeded", QE_LEVELS),
    (("tcbStatus",), "ConfigurationNeeded", QE_LEVELS),
    (("tcbStatus",), "OutOfDateConfigurationNeeded", QE_LEVELS),
    (("tcbStatus",), "Revoked", "sgx.tcb_revoked"),
    (("tcbStatus",), "OutOfDate", "sgx.tcb_status"),
]
QE_IDENTITY: list[tuple[str, object, str]] = [
    ("version", None, "collateral.qe_identity.version"),
    ("version", "2", "collateral.qe_identity.version"),
    ("id", None, "collateral.qe_identity.id"),
    ("issueDate", None, "collateral.qe_identity.issueDate"),
    ("nextUpdate", 1, "collateral.qe_identity.nextUpdate"),
    ("tcbEvaluationDataNumber", None, "collateral.qe_identity.tcbEvaluationDataNumber"),
    ("tcbEvaluationDataNumber", -1, "collateral.qe_identity.tcbEvaluationDataNumber"),
    ("miscselect", None, QE_MALFORMED),
    ("miscselect", "zz", QE_MALFORMED),
    ("miscselectMask", "00", QE_MALFORMED),
    ("attributes", None, QE_MALFORMED),
    ("attributes", "11", QE_MALFORMED),
    ("attributesMask", None, QE_MALFORMED),
    ("attributesMask", "zz", QE_MALFORMED),
    ("mrsigner", None, QE_MALFORMED),
    ("mrsigner", "00", QE_MALFORMED),
    ("isvprodid", None, QE_MALFORMED),
    ("isvprodid", -1, QE_MALFORMED),
    ("tcbLevels", None, QE_LEVELS),
    ("tcbLevels", {}, QE_MALFORMED),
    ("tcbLevels", [], "sgx.qe_identity"),
]
TCB_INFO: list[tuple[str, object, str]] = [
    ("version", None, "collateral.tcb_info.version"),
    ("version", True, "collateral.tcb_info.version"),
    ("id", None, "collateral.tcb_info.id"),
    ("tcbType", None, "collateral.tcb_info.tcbType"),
    ("issueDate", None, "collateral.tcb_info.issueDate"),
    ("issueDate", "2222-01-01T00:00:00Z", "collateral.tcb_info.not_yet_valid"),
    ("nextUpdate", None, "collateral.tcb_info.nextUpdate"),
    ("nextUpdate", 1, "collateral.tcb_info.nextUpdate"),
    ("fmspc", None, "sgx.fmspc"),
    ("fmspc", 1, "sgx.fmspc"),
    ("pceId", None, "sgx.pce_id"),
    ("tcbEvaluationDataNumber", None, "collateral.tcb_info.tcbEvaluationDataNumber"),
    ("tcbEvaluationDataNumber", -1, "collateral.tcb_info.tcbEvaluationDataNumber"),
    ("tcbEvaluationDataNumber", 2**40, TCB_MALFORMED),
    ("tcbLevels", None, TCB_MALFORMED),
    ("tcbLevels", {}, TCB_MALFORMED),
]


def changed(levels: list[dict[str, Any]], path: Path, value: object) -> list[dict[str, Any]]:
    """The levels with one thing in the first of them changed."""
    levels = copy.deepcopy(levels)
    at: Any = levels[0]
    for step in path[:-1]:
        at = at[step]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return levels


@threat(rows.TCB_OLD)
@pytest.mark.parametrize(("path", "value", "code"), TCB_LEVEL)
def test_a_tcb_level(shared: SimulatedSgx, path: Path, value: object, code: str) -> None:
    levels = json.loads(shared.collateral().tcb_info)["tcbLevels"]
    assert codes(shared.appraise(collateral=signed(shared, "tcb_info", tcbLevels=changed(levels, path, value)))) == [
        code
    ]


@threat(rows.TCB_OLD)
@pytest.mark.parametrize(("path", "value", "code"), QE_LEVEL)
def test_a_level_of_the_quoting_enclave(shared: SimulatedSgx, path: Path, value: object, code: str) -> None:
    levels = json.loads(shared.collateral().qe_identity)["tcbLevels"]
    bad = signed(shared, "qe_identity", tcbLevels=changed(levels, path, value))
    assert codes(shared.appraise(collateral=bad)) == [code]


@pytest.mark.parametrize(("key", "value", "code"), TCB_INFO)
def test_tcb_info(shared: SimulatedSgx, key: str, value: object, code: str) -> None:
    assert codes(shared.appraise(collateral=signed(shared, "tcb_info", **{key: value}))) == [code]


@pytest.mark.parametrize(("key", "value", "code"), QE_IDENTITY)
def test_qe_identity(shared: SimulatedSgx, key: str, value: object, code: str) -> None:
    assert codes(shared.appraise(collateral=signed(shared, "qe_identity", **{key: value}))) == [code]


@threat(rows.COLLATERAL_OLD)
def test_the_other_document_in_its_place(shared: SimulatedSgx) -> None:
    """One key signs both, so what each says of itself must be looked at."""
    good = shared.collateral()
    swapped = good.model_copy(
        update={"tcb_info": good.qe_identity, "tcb_info_signature": good.qe_identity_signature},
    )
    assert codes(shared.appraise(collateral=swapped)) == ["collateral.tcb_info.version"]
    swapped = good.model_copy(update={"qe_identity": good.tcb_info, "qe_identity_signature": good.tcb_info_signature})
    assert codes(shared.appraise(collateral=swapped)) == ["collateral.qe_identity.version"]


@threat(rows.COLLATERAL_OLD)
@pytest.mark.parametrize(("piece", "part"), [("pck_crl", "platform"), ("root_ca_crl", "root")])
def test_crls(shared: SimulatedSgx, piece: str, part: str) -> None:
    by, other = issuer(shared, part), issuer(shared, "processor")
    stranger = Issuer(by.certificate, ec.generate_private_key(ec.SECP256R1()))
    name = f"collateral.{piece}"
    cases = [
        (crl(by), []),
        (crl(by, revoked=[1, 2, 3], number=2**150), []),
        (crl(by, number=None), [f"{name}.malformed"]),
        (crl(stranger), [f"{name}.signature"]),
        (crl(by, name=other.certificate.subject), [f"{name}.signature"]),
        (crl(other), [f"{name}.signature"]),
        (crl(by, opens=NOW + 6), [f"{name}.not_yet_valid"]),
        (crl(by, closes=NOW - 6), [f"{name}.expired"]),
        (crl(by)[:-1], [f"{name}.malformed"]),
        (crl(by) + b"\0", [f"{name}.malformed"]),
    ]
    for der, expected in cases:
        assert codes(shared.appraise(collateral=shared.collateral(NOW, **{piece: der}))) == expected


def test_what_a_crl_revokes(shared: SimulatedSgx) -> None:
    leaf, ca, _root = parse(shared.quote()).pck.chain
    signer = issuer(shared, "tcb_signing").certificate
    pck_crl = crl(issuer(shared, "platform"), revoked=[leaf.serial_number])
    assert codes(shared.appraise(collateral=shared.collateral(pck_crl=pck_crl))) == ["sgx.pck_revoked"]
    for serial, expected in (
        (ca.serial_number, ["sgx.pck_ca_revoked"]),
        (signer.serial_number, ["collateral.tcb_info.revoked", "collateral.qe_identity.revoked"]),
        (leaf.serial_number, []),  # the root's list says nothing of what its CAs issued
    ):
        root_crl = crl(issuer(shared, "root"), revoked=[serial])
        assert codes(shared.appraise(collateral=shared.collateral(root_ca_crl=root_crl))) == expected


def test_a_ca_that_is_none(shared: SimulatedSgx) -> None:
    quote, root = shared.quote(), issuer(shared, "root")
    leaf, ca, top = parse(quote).pck.chain
    plain = reissued(ca, root.key, NOW - DAY, NOW + DAY, ca=False)
    assert codes(shared.appraise(with_chain(quote, leaf, plain, top))) == ["quote.pck_chain.chain"]
    assert shared.appraise(with_chain(quote, leaf, reissued(ca, root.key, NOW - DAY, NOW + DAY), top)).accepted


def test_chains_in_another_order_or_length(shared: SimulatedSgx) -> None:
    quote = shared.quote()
    leaf, ca, root = parse(quote).pck.chain
    for chain in ((leaf, ca), (ca, leaf, root), (leaf, root, ca), (leaf, ca, root, root), (leaf, leaf, root)):
        found = codes(shared.appraise(with_chain(quote, *chain)))
        assert found and all(code.startswith(("quote.pck", "collateral.pck_crl")) for code in found)


def test_another_machines_leaf_in_the_chain(shared: SimulatedSgx) -> None:
    """The chain is genuine, but this PCK did not sign this quoting enclave's report."""
    other = SimulatedSgx(shared.folder, machine="turned")
    leaf = platform.read_pck(shared.folder / other.machine)
    _, ca, root = parse(shared.quote()).pck.chain
    found = codes(shared.appraise(with_chain(shared.quote(), leaf, ca, root)))
    assert found == ["quote.qe_report_signature"]


def test_the_order_of_levels_does_not_matter(shared: SimulatedSgx) -> None:
    levels = json.loads(shared.collateral().tcb_info)["tcbLevels"]
    turned, good = shared.appraise(collateral=signed(shared, "tcb_info", tcbLevels=levels[::-1])), shared.appraise()
    assert turned.accepted
    assert (turned.tcb_status, turned.tcb_date) == (good.tcb_status, good.tcb_date)


def test_of_two_levels_with_the_same_svns_status_and_date_are_of_one(shared: SimulatedSgx) -> None:
    """A date of the other would let an outdated platform through its grace period, or its minimum date."""
    levels = json.loads(shared.collateral().tcb_info)["tcbLevels"]
    old = levels[0] | {"tcbStatus": "OutOfDate", "tcbDate": "2023-01-01T00:00:00Z"}
    policy = {"tcb_statuses": ("UpToDate", "OutOfDate"), "out_of_date_grace_s": NOW}
    found = [
        shared.appraise(collateral=signed(shared, "tcb_info", tcbLevels=[*both, *levels[1:]]), policy=policy)
        for both in ([old, levels[0]], [levels[0], old])
    ]
    dates = [int(datetime.fromisoformat(level["tcbDate"]).timestamp()) for level in (old, levels[0])]
    assert [(one.tcb_status, one.tcb_date) for one in found] == [("OutOfDate", dates[0]), ("UpToDate", dates[1])]


@pytest.mark.parametrize("status", ["OutOfDate", "Revoked"])
@pytest.mark.parametrize("above", [[7], [8], [8, 9]])
def test_levels_of_the_quoting_enclave_go_down(shared: SimulatedSgx, above: list[int], status: str) -> None:
    (reached,) = json.loads(shared.collateral().qe_identity)["tcbLevels"]
    levels = [reached | {"tcb": {"isvsvn": svn}} for svn in above] + [reached | {"tcbStatus": status}]
    assert codes(shared.appraise(collateral=signed(shared, "qe_identity", tcbLevels=levels))) == [QE_LEVELS]


def test_the_date_is_that_of_the_level_reached_and_the_older_of_platform_and_quoting_enclave(sgx: SimulatedSgx) -> None:
    def date_of() -> int | None:
        return sgx.appraise(policy={"tcb_statuses": ("UpToDate", "OutOfDate"), "out_of_date_grace_s": NOW}).tcb_date

    assert date_of() == int(datetime(2025, 11, 12, tzinfo=UTC).timestamp())
    levels = json.loads(sgx.collateral().qe_identity)["tcbLevels"]
    sgx.say(qe_identity={"tcbLevels": [levels[0] | {"tcbDate": "2023-01-01T00:00:00Z"}]})
    assert date_of() == int(datetime(2023, 1, 1, tzinfo=UTC).timestamp())
    sgx.say(qe_identity={"tcbLevels": levels})
    platform.set_tcb(sgx.folder / sgx.machine, sgx.folder / "authority", OLD_CPUSVN)
    assert date_of() == int(datetime(2024, 3, 13, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("at", "value", "field"),
    [
        (16, b"\xff", "qe_report.misc_select"),
        (48, b"\x13", "qe_report.attributes.DEBUG"),
        (48, b"\x01", "qe_report.attributes"),
        (128, b"\x00", "qe_report.mrsigner"),
        (256, b"\x05", "qe_report.isv_prod_id"),
        (258, b"\x07", "qe_report.isv_svn"),
    ],
)
def test_another_quoting_enclave(shared: SimulatedSgx, at: int, value: bytes, field: str) -> None:
    verdict = shared.appraise(with_qe_report(shared, shared.quote(), at, value))
    assert [(reason.code, reason.field) for reason in verdict.reasons] == [("sgx.qe_identity", field)]


def test_collateral_that_only_dcap_qvl_finds_malformed_is_to_be_fetched_again(shared: SimulatedSgx) -> None:
    for bad in (signed(shared, "tcb_info", tcbLevels={}), signed(shared, "qe_identity", mrsigner="00")):
        (reason,) = shared.appraise(collateral=bad).reasons
        assert reason.action.startswith("fetch the collateral again")


def test_another_edition_of_the_root_with_its_key_is_the_root(shared: SimulatedSgx) -> None:
    """Intel's SGX root is in the field twice: one name, one key, valid until 2033 or until 2049."""
    root = issuer(shared, "root")
    edition = reissued(root.certificate, root.key, NOW - 9 * DAY, NOW + 9 * DAY)
    leaf, ca, _ = parse(shared.quote()).pck.chain
    quote, edition_der = with_chain(shared.quote(), leaf, ca, edition), edition.public_bytes(Encoding.DER)
    assert shared.appraise(quote).accepted
    assert shared.appraise(quote, root_der=edition_der).accepted
    assert shared.appraise(root_der=edition_der).accepted
    pem = {key: getattr(shared.collateral(), key) for key in ("tcb_info_issuer_chain", "pck_crl_issuer_chain")}
    here, there = (one.public_bytes(Encoding.PEM).decode() for one in (root.certificate, edition))
    assert shared.appraise(collateral=shared.collateral(**{k: v.replace(here, there) for k, v in pem.items()})).accepted
    stranger = reissued(root.certificate, ec.generate_private_key(ec.SECP256R1()), NOW - DAY, NOW + DAY)
    forged = with_chain(shared.quote(), leaf, ca, stranger)
    assert codes(shared.appraise(forged)) == ["quote.pck_chain.root"], "the root's name and key, but not its word"


def test_a_crl_of_another_hierarchy(shared: SimulatedSgx, sgx: SimulatedSgx) -> None:
    """Whole and well signed, under another root of the same name."""
    other = sgx.collateral()
    pck = shared.collateral(NOW, pck_crl=other.pck_crl, pck_crl_issuer_chain=other.pck_crl_issuer_chain)
    assert codes(shared.appraise(collateral=pck))[0] == "collateral.pck_crl.root"
    root = shared.collateral(NOW, root_ca_crl=other.root_ca_crl)
    assert codes(shared.appraise(collateral=root))[0] == "collateral.root_ca_crl.signature"


@threat(rows.COLLATERAL_OLD)
def test_a_genuine_signer_beside_the_one_that_signed_lends_it_nothing(shared: SimulatedSgx) -> None:
    """The certificate that the chain is verified for is the one whose key verifies the document."""
    root, tcb = issuer(shared, "root").certificate, issuer(shared, "tcb_signing").certificate
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(tcb.issuer, tcb.subject, key.public_key(), tcb.serial_number)
    builder = builder.not_valid_before(tcb.not_valid_before_utc).not_valid_after(tcb.not_valid_after_utc)
    own, good = builder.sign(key, SHA256()), shared.collateral()
    r, s = decode_dss_signature(key.sign(good.tcb_info.encode(), ec.ECDSA(SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    for chain, code in (([tcb, root], "signature"), ([own, tcb, root], "chain"), ([tcb, own, root], "chain")):
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain).decode()
        forged = good.model_copy(update={"tcb_info_signature": signature, "tcb_info_issuer_chain": pem})
        assert codes(shared.appraise(collateral=forged))[0] == f"collateral.tcb_info.{code}"


def test_a_signer_with_another_kind_of_key(shared: SimulatedSgx) -> None:
    root, tcb = issuer(shared, "root"), issuer(shared, "tcb_signing").certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(tcb.subject)
        .issuer_name(tcb.issuer)
        .public_key(rsa.generate_private_key(65537, 2048).public_key())
        .serial_number(tcb.serial_number)
        .not_valid_before(tcb.not_valid_before_utc)
        .not_valid_after(tcb.not_valid_after_utc)
    )
    for extension in tcb.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    chain = builder.sign(root.key, SHA256()).public_bytes(Encoding.PEM) + root.certificate.public_bytes(Encoding.PEM)
    verdict = shared.appraise(collateral=shared.collateral(NOW, tcb_info_issuer_chain=chain.decode()))
    assert codes(verdict)[0] == "collateral.tcb_info.signature"
    assert verdict.reasons[0].expected == "an ECDSA key"
