"""A new issuing CA without an outage: both are accepted, each keeps its list, the old one goes when it may."""

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.pki import crl
from attestgate.manager.pki.authority import key_id, load_authority
from attestgate.manager.pki.issue import MANAGER_KEY, PROXY, issue, issue_with_key, read_marks
from attestgate.manager.pki.rotation import finish, rotate
from attestgate.schemas.base import Refusal, Secret
from tests.support.gateway.gate import Gate, running
from tests.support.pki import AT, PASSPHRASE
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat


def test_the_new_one_issues_and_the_old_one_keeps_its_list(folder: Path) -> None:
    before = load_authority(folder, PASSPHRASE)
    identifier = rotate(folder, PASSPHRASE, AT + 10)
    after = load_authority(folder, PASSPHRASE)
    assert key_id(after.certificate) == identifier != key_id(before.certificate)
    assert [key_id(issuer.certificate) for issuer in after.retired] == [key_id(before.certificate)]
    assert after.root == before.root
    for issuer in (after, *after.retired):
        der = crl.extend(issuer, [], [], at=AT + 11, longest_s=60)
        assert crl.read(issuer, der).issuer == issuer.certificate.subject
    assert after.certificate.subject != before.certificate.subject, "a list is found by its issuer's name"
    clients = x509.load_pem_x509_certificates((folder / "client-ca.pem").read_bytes())
    assert clients == [after.certificate, before.certificate, before.root]
    for path in folder.glob("*.key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_old_one_goes_when_its_last_certificate_has_ended(folder: Path) -> None:
    before = load_authority(folder, PASSPHRASE)
    rotate(folder, PASSPHRASE, AT + 10)
    with pytest.raises(Refusal) as refusal:
        finish(folder, PASSPHRASE, AT + 3000, 3600)
    assert refusal_code(refusal) == "pki.in_use"
    assert finish(folder, PASSPHRASE, AT + 3610, 3600) == [key_id(before.certificate)]
    after = load_authority(folder, PASSPHRASE)
    assert after.retired == ()
    assert x509.load_pem_x509_certificates((folder / "client-ca.pem").read_bytes()) == [after.certificate, after.root]
    assert finish(folder, PASSPHRASE, AT + 3611, 3600) == []


@threat(rows.KEY_CA_SERVER)
def test_without_the_roots_key_nothing_changes(folder: Path) -> None:
    (folder / "root-ca.key.pem").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Refusal) as refusal:
        rotate(folder, PASSPHRASE, AT)
    assert refusal_code(refusal) == "pki.root"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_wrong_passphrase_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Refusal):
        rotate(folder, Secret(b"other"), AT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_roots_list_is_there_and_revokes_nobody(folder: Path) -> None:
    root = load_authority(folder, PASSPHRASE).root
    listed = x509.load_pem_x509_crl((folder / "root-ca.crl.pem").read_bytes())
    public = root.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey) and listed.is_signature_valid(public)
    assert list(listed) == []
    assert listed.next_update_utc == root.not_valid_after_utc


def test_marks_stand_in_the_certificate(folder: Path) -> None:
    authority = load_authority(folder, PASSPHRASE)
    made = issue_with_key(authority, host="h1", app="a1", lifetime_s=60, at=AT, marks=[PROXY])
    leaf = x509.load_pem_x509_certificate(made.chain.encode())
    assert read_marks(leaf) == [PROXY, MANAGER_KEY]
    assert made.key is not None and b"PRIVATE" in made.key.reveal() and "PRIVATE" not in repr(made)
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    plain = issue(authority, request.public_bytes(Encoding.DER), host="h1", app="a1", lifetime_s=60, at=AT)
    assert plain.key is None
    assert read_marks(x509.load_pem_x509_certificate(plain.chain.encode())) == []


@pytest.mark.stack
async def test_nobody_is_cut_off_by_it(tmp_path: Path) -> None:
    """nginx, not even reloaded, takes certificates of both; openssl's own chain building does, too."""
    async with running(Gate(tmp_path, time.time)) as gate:
        old = gate.client()
        rotate(tmp_path / "ca", PASSPHRASE, int(time.time()))
        gate.authority = load_authority(tmp_path / "ca", PASSPHRASE)
        new = gate.client(app="a2")
        await gate.admit(old, new)
        for client in (old, new):
            assert (await client.http.get("/x")).status_code == 200
        assert old.issued is not None and new.issued is not None and old.issued.issuer != new.issued.issuer
        assert ssl.create_default_context(cafile=str(tmp_path / "ca" / "client-ca.pem")).cert_store_stats()["x509"] == 3
