"""The CA's files: encrypted, private, never overwritten, and refused with a reason when they do not fit."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestgate.manager.pki.authority import create_ca, load_authority
from attestgate.schemas.base import Refusal, Secret
from tests.support.pki import AT, PASSPHRASE
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat


def test_the_chain_is_root_then_issuing_and_neither_can_grow(folder: Path) -> None:
    authority = load_authority(folder, PASSPHRASE)
    authority.certificate.verify_directly_issued_by(authority.root)
    authority.root.verify_directly_issued_by(authority.root)
    lengths = [
        c.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        for c in (authority.root, authority.certificate)
    ]
    assert lengths == [1, 0]
    assert authority.trust_domain == "sdn.example.org"
    assert "key" not in repr(authority)


@threat(rows.SECRETS_ON_DISK)
def test_private_keys_are_encrypted_and_readable_by_their_owner_only(folder: Path) -> None:
    for name in ("root-ca.key.pem", "issuing-ca.key.pem"):
        path = folder / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        with pytest.raises(TypeError):
            load_pem_private_key(path.read_bytes(), None)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_ca_is_never_overwritten(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Refusal) as refusal:
        create_ca(folder, "sdn.example.org", PASSPHRASE, AT)
    assert refusal_code(refusal) == "pki.exists"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["", "UPPER.example", "a b", "a..b", "-a", "a/b", "x" * 64, "a\n"])
def test_a_trust_domain_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refusal) as refusal:
        create_ca(tmp_path / "ca", name, PASSPHRASE, AT)
    assert refusal_code(refusal) == "pki.trust_domain"
    assert not (tmp_path / "ca").exists()


def test_a_wrong_passphrase_is_refused_and_not_shown(folder: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        load_authority(folder, Secret(b"hunter2-marked"))
    assert refusal_code(refusal) == "pki.load"
    assert "hunter2" not in str(refusal.value)


def test_the_root_key_is_not_needed_to_issue(folder: Path) -> None:
    (folder / "root-ca.key.pem").unlink()
    assert load_authority(folder, PASSPHRASE).trust_domain == "sdn.example.org"


@pytest.mark.parametrize("name", ["root-ca.pem", "issuing-ca.pem", "issuing-ca.key.pem", "trust-domain"])
def test_a_missing_or_spoiled_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff junk")
    with pytest.raises(Refusal) as spoiled:
        load_authority(folder, PASSPHRASE)
    (folder / name).unlink()
    with pytest.raises(Refusal) as missing:
        load_authority(folder, PASSPHRASE)
    assert refusal_code(spoiled) == refusal_code(missing) == "pki.load"
    assert name in str(missing.value)


@pytest.mark.parametrize("name", ["root-ca.pem", "issuing-ca.pem", "issuing-ca.key.pem"])
def test_files_of_two_cas_do_not_mix(folder: Path, tmp_path: Path, name: str) -> None:
    create_ca(tmp_path / "other", "sdn.example.org", PASSPHRASE, AT)
    (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(Refusal) as refusal:
        load_authority(folder, PASSPHRASE)
    assert refusal_code(refusal) == "pki.load"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal) as refusal:
        create_ca(tmp_path / "file" / "ca", "sdn.example.org", PASSPHRASE, AT)
    assert refusal_code(refusal) == "pki.folder"
