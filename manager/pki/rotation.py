"""A new issuing CA under the same root, without an outage.

Managers issue under the new one as soon as they are started again, one after another. Those who verify certificates
trust the root and get the issuing CA with each of them, so both are accepted meanwhile; the old one keeps its key for
its revocation list until its last certificate has ended.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.pki.authority import (
    Authority,
    Issuer,
    encrypted,
    key_id,
    load_authority,
    load_issuer,
    new_issuing,
    write_new,
)
from attestgate.schemas.base import Refusal, Secret


def rotate(folder: Path, passphrase: Secret, at: int) -> str:
    """Replace the issuing CA; its identifier (see `key_id`). Needs the root's key. Raises Refusal (`pki.*`).

    Every file is written beside the old one and moved into place, so that a manager that starts in between reads either
    CA, or is refused and starts again.
    """
    before = load_authority(folder, passphrase)
    root = _root(folder, passphrase)
    key = generate_private_key(SECP256R1())
    certificate = new_issuing(root, key.public_key(), before.trust_domain, datetime.fromtimestamp(at, UTC))
    retired = f"retired-{key_id(before.certificate)[:16]}"
    write_new(folder / "next.key.pem", encrypted(key, passphrase), 0o600)
    write_new(folder / "next.pem", certificate.public_bytes(Encoding.PEM), 0o644)
    (folder / "issuing-ca.pem").rename(folder / f"{retired}.pem")
    (folder / "issuing-ca.key.pem").rename(folder / f"{retired}.key.pem")
    (folder / "next.pem").rename(folder / "issuing-ca.pem")
    (folder / "next.key.pem").rename(folder / "issuing-ca.key.pem")
    _write_client_ca(folder, load_authority(folder, passphrase))
    return key_id(certificate)


def finish(folder: Path, passphrase: Secret, at: int, longest_s: int) -> list[str]:
    """Remove retired CAs whose last certificate has expired: their files are deleted, their identifiers returned.

    `longest_s` is the longest life of a certificate. Raises Refusal (`pki.*`); `pki.in_use` if any may still live.
    """
    authority = load_authority(folder, passphrase)
    replaced = authority.certificate.not_valid_before_utc.timestamp()
    if authority.retired and at < replaced + longest_s:
        raise Refusal.because(
            "pki.in_use",
            "retired issuing CAs",
            expected=f"a time after their last certificate expires, {int(replaced) + longest_s}",
            found=at,
            action="wait until then",
        )
    gone = [key_id(issuer.certificate) for issuer in authority.retired]
    for identifier in gone:
        (folder / f"retired-{identifier[:16]}.key.pem").unlink()
        (folder / f"retired-{identifier[:16]}.pem").unlink()
    _write_client_ca(folder, load_authority(folder, passphrase))
    return gone


def _root(folder: Path, passphrase: Secret) -> Issuer:
    try:
        return load_issuer(folder, "root-ca", passphrase)
    except (OSError, ValueError, TypeError) as error:
        raise Refusal.because(
            "pki.root",
            str(folder / "root-ca.key.pem"),
            expected="the root's key, under the same passphrase",
            found=getattr(error, "strerror", None) or type(error).__name__,
            action="copy it back to this folder until this is done",
        ) from None


def _write_client_ca(folder: Path, authority: Authority) -> None:
    issuers = (authority, *authority.retired)
    pem = b"".join(c.public_bytes(Encoding.PEM) for c in (*(i.certificate for i in issuers), authority.root))
    write_new(folder / "client-ca.next", pem, 0o644)
    (folder / "client-ca.next").rename(folder / "client-ca.pem")
