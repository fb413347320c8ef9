"""Issuing: what comes out, and that a request for anything else is refused for its own reason."""

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from attestgate.app_agent.step5_evidence import TlsKey
from attestgate.app_agent.step7_certificate import ssl_context
from attestgate.enclave.providers.memory import file_in_memory
from attestgate.manager.pki.authority import Authority, create_ca, load_authority
from attestgate.manager.pki.issue import MAX_REQUEST, issue, issue_server
from attestgate.schemas.base import Refusal
from tests.support.pki import AT, PASSPHRASE
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

IDENTITY = "spiffe://sdn.example.org/host/h1/app/a1"
KEY = ec.generate_private_key(ec.SECP256R1())
Build = Callable[[x509.CertificateSigningRequestBuilder], x509.CertificateSigningRequestBuilder]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder: Path = tmp_path_factory.mktemp("pki") / "ca"
    create_ca(folder, "sdn.example.org", PASSPHRASE, AT)
    return load_authority(folder, PASSPHRASE)


def request(build: Build = lambda b: b, key: object = KEY, hash_: object = None, subject: str = "") -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = build(x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hash_ or SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def uris(*names: str) -> Build:
    return lambda b: b.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names]), critical=False
    )


REQUEST = request(uris(IDENTITY))


def not_issued(authority: Authority, der: bytes) -> str:
    with pytest.raises(Refusal) as refusal:
        issue(authority, der, host="h1", app="a1", lifetime_s=3600, at=AT)
    return refusal_code(refusal)


@threat(rows.IDENTITY_SPOOFED)
@pytest.mark.parametrize("build", [lambda b: b, uris(IDENTITY)], ids=["no name", "its own name"])
@pytest.mark.parametrize("hash_", [SHA256(), SHA384(), SHA512()], ids=lambda h: h.name)
def test_a_certificate_holds_what_it_should_and_nothing_else(authority: Authority, build: Build, hash_: object) -> None:
    issued = issue(authority, request(build, hash_=hash_), host="h1", app="a1", lifetime_s=3600, at=AT)
    leaf, issuing = x509.load_pem_x509_certificates(issued.chain.encode())
    leaf.verify_directly_issued_by(issuing)
    assert issuing == authority.certificate
    assert leaf.public_key() == KEY.public_key()
    assert list(leaf.subject) == []
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert [name.value for name in names.value] == [IDENTITY] == [issued.identity]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and not basic.value.ca
    bits = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert bits.digital_signature and not bits.key_cert_sign
    assert leaf.not_valid_after_utc == datetime.fromtimestamp(AT + 3600, UTC)
    assert issued.not_after == AT + 3600
    assert issued.sha256 == sha256(leaf.public_bytes(Encoding.DER)).hexdigest()
    assert int(issued.serial, 16) == leaf.serial_number
    assert len(issued.serial) == 32


def test_serials_do_not_repeat(authority: Authority) -> None:
    der = request()
    serials = {issue(authority, der, host="h1", app="a1", lifetime_s=60, at=AT).serial for _ in range(200)}
    assert len(serials) == 200


def test_no_certificate_outlives_its_ca(authority: Authority) -> None:
    end = int(authority.certificate.not_valid_after_utc.timestamp())
    last = issue(authority, request(), host="h1", app="a1", lifetime_s=3600, at=end - 10)
    assert last.not_after == end
    with pytest.raises(Refusal) as refusal:
        issue(authority, request(), host="h1", app="a1", lifetime_s=3600, at=end)
    assert refusal_code(refusal) == "pki.expired"


@threat(rows.IDENTITY_SPOOFED)
@pytest.mark.parametrize(
    ("build", "code"),
    [
        (uris("spiffe://sdn.example.org/host/h1/app/a2"), "pki.names"),
        (uris("spiffe://other.example/host/h1/app/a1"), "pki.names"),
        (uris(IDENTITY, "spiffe://sdn.example.org/host/h1/app/a2"), "pki.names"),
        (uris(IDENTITY, IDENTITY), "pki.names"),
        (
            lambda b: b.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False),
            "pki.names",
        ),
        (
            lambda b: b.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True),
            "pki.extensions",
        ),
        (
            lambda b: b.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False),
            "pki.extensions",
        ),
        (lambda b: b.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"x"), "pki.attributes"),
    ],
)
def test_a_request_for_more_is_refused(authority: Authority, build: Build, code: str) -> None:
    assert not_issued(authority, request(build)) == code


@threat(rows.IDENTITY_SPOOFED)
def test_a_subject_is_refused(authority: Authority) -> None:
    assert not_issued(authority, request(subject="admin")) == "pki.names"


@threat(rows.IDENTITY_SPOOFED)
@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "secp256k1", "Ed25519", "RSA"],
)
def test_another_kind_of_key_is_refused(authority: Authority, key: object) -> None:
    assert not_issued(authority, request(key=key)) == "pki.key"


@threat(rows.IDENTITY_SPOOFED)
def test_possession_is_proved(authority: Authority) -> None:
    der = bytearray(request())
    der[-1] ^= 1
    assert not_issued(authority, bytes(der)) == "pki.possession"
    mine, theirs = (
        k.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        for k in (KEY, ec.generate_private_key(ec.SECP256R1()))
    )
    assert not_issued(authority, request().replace(mine, theirs)) == "pki.possession"


def test_a_large_request_is_refused_before_it_is_read(authority: Authority) -> None:
    assert not_issued(authority, bytes(MAX_REQUEST + 1)) == "pki.size"
    assert not_issued(authority, bytes(MAX_REQUEST)) == "pki.encoding"


@pytest.mark.parametrize("der", [b"", b"0", request() + b"\0", request()[:-1]], ids=["empty", "short", "long", "cut"])
def test_a_malformed_request_is_refused(authority: Authority, der: bytes) -> None:
    assert not_issued(authority, der) == "pki.encoding"


@given(place=st.integers(0, len(REQUEST) - 1), flip=st.integers(1, 255))
def test_a_mangled_request_is_refused(authority: Authority, place: int, flip: int) -> None:
    """Every change breaks the encoding or the signature; none becomes an exception of another kind."""
    der = bytearray(REQUEST)
    der[place] ^= flip
    assert not_issued(authority, bytes(der)).startswith("pki.")


@given(der=st.binary(max_size=200))
def test_random_bytes_are_refused(authority: Authority, der: bytes) -> None:
    assert not_issued(authority, der) == "pki.encoding"


def test_a_server_certificate_is_for_a_server(authority: Authority) -> None:
    server = issue_server(authority, names=["localhost", "127.0.0.1"], lifetime_s=86400, at=AT)
    leaf, issuing = x509.load_pem_x509_certificates(server.chain.encode())
    leaf.verify_directly_issued_by(issuing)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1"]
    key = load_pem_private_key(server.key.reveal(), None)
    assert key.public_key() == leaf.public_key()
    assert "PRIVATE" not in repr(server)


def shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A TLS handshake in memory with the server `localhost`. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname="localhost"), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()


@threat(rows.APP_AS_GATEWAY)
def test_an_applications_certificate_is_no_gateways(authority: Authority) -> None:
    """Both are of one CA, which applications pin: only a certificate for a server, of its name, passes."""
    key = TlsKey.generate()
    own = issue(authority, key.request(), host="h1", app="a1", lifetime_s=3600, at=int(time.time()))
    server = issue_server(authority, names=["localhost"], lifetime_s=3600, at=int(time.time()))
    root = authority.root.public_bytes(Encoding.PEM).decode()
    client = ssl_context(key, own.chain, root)
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for served, refused in ((server.key.reveal() + server.chain.encode(), False), (pem + own.chain.encode(), True)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with file_in_memory(served) as path:
            context.load_cert_chain(path)
        if refused:
            with pytest.raises(ssl.SSLCertVerificationError):
                shaken(context, client)
        else:
            shaken(context, client)


@pytest.mark.parametrize("names", [[], ["bücher.example"]])
def test_a_server_needs_names_that_fit(authority: Authority, names: list[str]) -> None:
    with pytest.raises(Refusal) as refusal:
        issue_server(authority, names=names, lifetime_s=60, at=AT)
    assert refusal_code(refusal) == "pki.names"
