"""Quotes: byte for byte what Intel's quoting enclave makes, and judged by the code that judges hardware."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from attestgate.enclave.simulated import authority, platform
from attestgate.enclave.simulated.authority import CPUSVN, FMSPC, OLD_CPUSVN, Authority
from attestgate.enclave.simulated.documents import PckCa
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.enclave.simulated.sgx_extension import OID, PckFacts, PlatformInstance, sgx_extension
from tests.support.sgx.recorded import sgx_vectors
from tests.support.threats import rows, threat

REPORT_DATA = bytes(range(64))
IDENTITY = EnclaveIdentity(mrenclave=b"e" * 32, mrsigner=b"s" * 32, isv_prod_id=0x0102, isv_svn=0x0304, debug=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quotes")
    authority.create(folder / "authority")
    platform.create(folder / "platform", folder / "authority", "platform")
    platform.create(folder / "processor", folder / "authority", "processor")
    return folder


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """An authority and a machine that the test may spoil."""
    authority.create(tmp_path / "authority")
    platform.create(tmp_path / "platform", tmp_path / "authority")
    return tmp_path


def quote_of(folder: Path, machine: str = "platform", identity: EnclaveIdentity = IDENTITY) -> bytes:
    return platform.Platform(folder / machine).quote(identity, REPORT_DATA)


def verify(folder: Path, quote: bytes, ca: PckCa = "platform") -> dcap_qvl.VerifiedReport:
    issuer, now = Authority(folder / "authority"), datetime.now(UTC)
    return dcap_qvl.verify_with_root_ca(quote, collateral(issuer, ca, now), issuer.root_der, int(now.timestamp()))


def collateral(issuer: Authority, ca: PckCa, now: datetime) -> dcap_qvl.QuoteCollateralV3:
    tcb_info, qe_identity = issuer.tcb_info(now), issuer.qe_identity(now)
    return dcap_qvl.QuoteCollateralV3(
        issuer.ca_chain(ca).decode(),
        issuer.root_crl(now),
        issuer.pck_crl(ca, now),
        issuer.signing_chain.decode(),
        tcb_info.body.decode(),
        tcb_info.signature,
        issuer.signing_chain.decode(),
        qe_identity.body.decode(),
        qe_identity.signature,
    )


@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_verifies_up_to_date_with_the_simulated_root(made: Path, ca: PckCa) -> None:
    quote = quote_of(made, ca)
    found = verify(made, quote, ca)
    assert (found.status, found.advisory_ids) == ("UpToDate", [])
    assert found.ppid == platform.read_facts(made / ca).pck.ppid
    assert dcap_qvl.parse_quote(quote).ca() == ca


@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_passes_the_strict_policy(made: Path, ca: PckCa) -> None:
    issuer, now = Authority(made / "authority"), datetime.now(UTC)
    policy = dcap_qvl.QuotePolicy.strict(int(now.timestamp()))
    verifier = dcap_qvl.QuoteVerifier(issuer.root_der)
    claims = verifier.verify_with_policy(quote_of(made, ca), collateral(issuer, ca, now), int(now.timestamp()), policy)
    assert '"status":"UpToDate"' in claims.to_json()


@threat(rows.SIMULATED)
def test_is_refused_with_intels_root(made: Path) -> None:
    now = datetime.now(UTC)
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(
            quote_of(made), collateral(Authority(made / "authority"), "platform", now), int(now.timestamp())
        )


def test_is_refused_with_another_authority(made: Path, alone: Path) -> None:
    with pytest.raises(ValueError, match="Verification failed"):
        verify(alone, quote_of(made))


def test_every_field_is_where_intel_puts_it(made: Path) -> None:
    quote, facts = quote_of(made), platform.read_facts(made / "platform")
    header = struct.unpack("<HHIHH16s20s", quote[:48])
    assert header == (3, 2, 0, 8, 13, bytes.fromhex("939a7233f79c4ca9940a0db3957f0607"), facts.qe_id + bytes(4))
    body = quote[48:432]
    assert body[0:16] == CPUSVN
    assert body[16:48] == bytes(32)  # MISCSELECT and reserved
    assert body[48:64] == bytes.fromhex("05000000000000000700000000000000")
    assert body[64:96] == IDENTITY.mrenclave
    assert body[96:128] == bytes(32)
    assert body[128:160] == IDENTITY.mrsigner
    assert body[160:256] == bytes(96)
    assert body[256:260] == bytes.fromhex("02010403")
    assert body[260:320] == bytes(60)
    assert body[320:384] == REPORT_DATA
    (size,) = struct.unpack_from("<I", quote, 432)
    assert len(quote) == 436 + size
    key, qe_report = quote[500:564], quote[564:948]
    assert qe_report[320:384] == hashlib.sha256(key + quote[1014:1046]).digest() + bytes(32)
    assert struct.unpack_from("<H", quote, 1012) == (32,)
    assert struct.unpack_from("<HI", quote, 1046) == (5, len(quote) - 1052)
    chain = x509.load_pem_x509_certificates(quote[1052:].rstrip(b"\0"))
    assert [certificate.subject.rfc4514_string().split(",")[-1] for certificate in chain] == [
        "CN=Simulated SGX PCK Certificate",
        "CN=Simulated SGX PCK Platform CA",
        "CN=Simulated SGX Root CA",
    ]
    _check(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + key), quote[436:500], quote[:432])
    pck = chain[0].public_key()
    assert isinstance(pck, ec.EllipticCurvePublicKey)
    _check(pck, quote[948:1012], qe_report)


def _check(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> None:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))  # raises if it does not hold


@pytest.mark.parametrize("length", [0, 63, 65])
def test_report_data_of_another_length_is_no_report_data(made: Path, length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        platform.Platform(made / "platform").quote(IDENTITY, bytes(length))


def test_debug_enclave_shows(made: Path) -> None:
    quote = quote_of(made, identity=IDENTITY.model_copy(update={"debug": True}))
    assert quote[96] & 0x02
    with pytest.raises(ValueError, match="Debug mode"):
        verify(made, quote)


def test_older_microcode_is_out_of_date_on_the_same_machine_with_other_sealing_keys(alone: Path) -> None:
    before, machine = quote_of(alone), platform.Platform(alone / "platform")
    platform.set_tcb(alone / "platform", alone / "authority", OLD_CPUSVN)
    after, updated = quote_of(alone), platform.Platform(alone / "platform")
    found = verify(alone, after)
    assert (found.status, found.advisory_ids) == ("OutOfDate", ["INTEL-SA-00828"])
    assert before[28:44] == after[28:44]  # QE id
    assert before[500:564] == after[500:564]  # attestation key
    assert dcap_qvl.parse_quote(after).fmspc() == FMSPC.hex().upper()
    for policy in ("mrenclave", "mrsigner"):
        assert machine.sealing_key(IDENTITY, policy).reveal() != updated.sealing_key(IDENTITY, policy).reveal()


@pytest.mark.parametrize("changed", [{"isv_prod_id": 9}, {"isv_svn": 9}, {"debug": True}])
def test_sealing_keys_depend_on_product_svn_and_debug(made: Path, changed: dict[str, object]) -> None:
    machine = platform.Platform(made / "platform")
    other = IDENTITY.model_copy(update=changed)
    assert machine.sealing_key(IDENTITY, "mrsigner").reveal() != machine.sealing_key(other, "mrsigner").reveal()


def test_revoked_pck_is_refused_and_the_crl_number_rises(alone: Path) -> None:
    issuer, now = Authority(alone / "authority"), datetime.now(UTC)
    before = x509.load_der_x509_crl(issuer.pck_crl("platform", now))
    authority.revoke_pck(alone / "authority", platform.read_pck(alone / "platform"))
    after = x509.load_der_x509_crl(issuer.pck_crl("platform", now))
    numbers = [crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for crl in (before, after)]
    assert numbers[0] < numbers[1]
    with pytest.raises(ValueError, match=r"(?i)revoked"):
        verify(alone, quote_of(alone))


def test_what_the_documents_say_is_what_is_found(alone: Path) -> None:
    documents = authority.read_documents(alone / "authority")
    first, *rest = documents.tcb_info.tcb_levels
    levels = (first.model_copy(update={"tcb_status": "SWHardeningNeeded", "advisory_ids": ("INTEL-SA-00615",)}), *rest)
    tcb_info = documents.tcb_info.model_copy(update={"tcb_levels": levels})
    authority.write_documents(alone / "authority", documents.model_copy(update={"tcb_info": tcb_info}))
    found = verify(alone, quote_of(alone))
    assert (found.status, found.advisory_ids) == ("SWHardeningNeeded", ["INTEL-SA-00615"])


def test_private_files_are_private(made: Path) -> None:
    files = [path for path in made.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_extension_reads_back() -> None:
    facts = PckFacts(
        ppid=b"p" * 16,
        cpusvn=bytes(range(250, 256)) + bytes(10),
        pcesvn=0x0D0E,
        pceid=b"\1\2",
        fmspc=b"fmspc!",
        sgx_type=2,
        instance=PlatformInstance(id=b"i" * 16, cached_keys=True),
    )
    der = sgx_extension(facts).value
    assert der[:2] == b"\x30\x82"
    assert bytes.fromhex("300f060a2a864886f84d010d01050a0102") in der  # SGXType is an ENUMERATED
    assert bytes.fromhex("3010060b2a864886f84d010d01070201 01ff") in der  # cachedKeys TRUE
    assert bytes.fromhex("3011060b2a864886f84d010d010211 02020d0e") in der  # PCESVN


@pytest.mark.parametrize("name", ["dcap-zkdcap-risc0", "dcap-automata-quotev3", "dcap-openenclave-tcbv2"])
def test_extension_equals_intels(name: str) -> None:
    quote = (sgx_vectors() / name / "quote.bin").read_bytes()
    chain = dcap_qvl.parse_quote(quote).cert_chain_pem_bytes()
    assert chain is not None
    leaf = x509.load_pem_x509_certificates(chain)[0]
    intels = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(OID)).value
    assert isinstance(intels, x509.UnrecognizedExtension)
    pck = dcap_qvl.parse_pck_extension_from_pem(chain)
    instance = pck.platform_instance_id
    flags = [pck.get_value(f"{OID}.7.{number}") == b"\xff" for number in (1, 2, 3)]
    components = [pck.get_value(f"{OID}.2.{number}") or b"" for number in range(1, 17)]
    facts = PckFacts(
        ppid=pck.ppid,
        cpusvn=bytes(int.from_bytes(component, "big") for component in components),
        pcesvn=pck.pce_svn,
        pceid=pck.pce_id,
        fmspc=pck.fmspc,
        sgx_type=pck.sgx_type,
        instance=PlatformInstance(id=instance, dynamic_platform=flags[0], cached_keys=flags[1], smt_enabled=flags[2])
        if instance
        else None,
    )
    raw = facts.cpusvn  # Intel's CPUSVN is the raw register, not always its components
    assert sgx_extension(facts).value.replace(b"\x04\x10" + raw, b"\x04\x10" + pck.cpu_svn) == intels.value


@pytest.mark.parametrize("name", ["dcap-zkdcap-risc0", "dcap-automata-quotev3"])
def test_layout_equals_intels(made: Path, name: str) -> None:
    intels, ours = (sgx_vectors() / name / "quote.bin").read_bytes(), quote_of(made)
    assert ours[:8] == intels[:8]
    assert ours[12:28] == intels[12:28]
    for start, end in ((436 + 576, 436 + 576 + 34 + 2), (564 + 16, 564 + 48), (564 + 48, 564 + 49)):
        assert ours[start:end] == intels[start:end]
    assert ours[-28:] == intels[-28:]  # the end of the chain: newline, NUL
