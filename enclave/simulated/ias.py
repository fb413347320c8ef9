"""The simulated legacy attestation service (IAS, EPID), with a root of its own, and the EPID quotes that it accepts.

Source: Intel, "Attestation Service for Intel SGX: API Documentation", version 4. EPID itself is not simulated: in the
signature's place a quote carries the version of the revocation list that its maker had and the machine's own ECDSA
quote, which only this service reads. What EPID would hide stays hidden behind the pseudonym.
"""

from __future__ import annotations

import base64
import hmac
import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes
from urllib.parse import quote as urlquote

import dcap_qvl
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from attestgate.enclave.simulated import certificates
from attestgate.enclave.simulated.authority import Authority
from attestgate.enclave.simulated.certificates import Issuer
from attestgate.enclave.simulated.files import new_folder, not_a, read_bytes, read_certificate, write_key, write_private
from attestgate.enclave.simulated.platform import Platform
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.schemas.base import Model, Secret, read_json

GROUP = bytes.fromhex("51a70000")
"""The one EPID group that simulated machines belong to (little-endian, as in a quote)."""
SIG_RL_SIZE = 128
_VERSION, _LINKABLE = 2, 1
_HEADER = struct.Struct("<HH4sHH4s32s")
_SIGNED = 432
_YEAR = 365
_MAX_BODY, _MAX_NONCE = 64 * 1024, 32
_STATUS = {
    "UpToDate": "OK",
    "SWHardeningNeeded": "SW_HARDENING_NEEDED",
    "ConfigurationNeeded": "CONFIGURATION_NEEDED",
    "ConfigurationAndSWHardeningNeeded": "CONFIGURATION_AND_SW_HARDENING_NEEDED",
    "OutOfDate": "GROUP_OUT_OF_DATE",
    "OutOfDateConfigurationNeeded": "GROUP_OUT_OF_DATE",
}


class IasState(Model):
    """The service's state besides its authority's documents. `sig_rl_version` 0: nothing is revoked by signature."""

    subscription_key: str
    sig_rl_version: int = 0


def create(folder: Path) -> None:
    """Create a service in an empty folder: its root, its signing key, a subscription key. Raises Refusal."""
    new_folder(folder)
    now = datetime.now(UTC).replace(microsecond=0)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = Issuer(certificates.root(root_key, "Simulated Attestation Report Signing CA", now, 30 * _YEAR), root_key)
    key = rsa.generate_private_key(65537, 3072)  # reports are signed with RSA, whatever key certifies it
    signing = certificates.leaf(key.public_key(), "Simulated Attestation Report Signing", root, now, 10 * _YEAR)
    write_key(folder / "signing.key", key)
    write_private(folder / "root.pem", root.pem)
    write_private(folder / "signing.pem", signing.public_bytes(Encoding.PEM))
    write_private(folder / "pseudonym.secret", token_bytes(32))
    write_state(folder, IasState(subscription_key=token_bytes(16).hex()))


def read_state(folder: Path) -> IasState:
    """The service's current state. Raises Refusal (`file.*`)."""
    return read_json(IasState, folder / "state.json")


def write_state(folder: Path, state: IasState) -> None:
    """Replace the service's state."""
    write_private(folder / "state.json", state.model_dump_json().encode())


def epid_quote(
    machine: Platform, enclave: EnclaveIdentity, report_data: bytes, spid: bytes, *, sig_rl_version: int = 0
) -> bytes:
    """A linkable EPID quote of a running enclave, for one SPID (16 bytes)."""
    ecdsa = machine.quote(enclave, report_data)
    header = _HEADER.pack(_VERSION, _LINKABLE, GROUP, 11, 13, bytes(4), spid.ljust(32, b"\0"))
    signature = struct.pack("<I", sig_rl_version) + ecdsa
    return header + ecdsa[48:_SIGNED] + struct.pack("<I", len(signature)) + signature


def pseudonym(folder: Path, ppid: bytes, spid: bytes) -> str:
    """epidPseudonym: the service's name for a machine (by its PPID) towards one SPID, in base64. Raises Refusal."""
    secret = Secret(read_bytes(folder / "pseudonym.secret"))
    return _pseudonym(secret, ppid, spid.ljust(32, b"\0"))


def _pseudonym(secret: Secret, ppid: bytes, basename: bytes) -> str:
    return base64.b64encode(hmac.digest(secret.reveal(), ppid + basename, "sha512") * 2).decode()


def application(folder: Path, authority: Path) -> Starlette:
    """The service as an ASGI application. Raises Refusal (`file.*`)."""
    service = _Service(folder, Authority(authority))
    routes = [
        Route("/sigrl/{group}", service.sig_rl),
        Route("/report", service.report, methods=["POST"]),
    ]
    return Starlette(routes=[Mount("/attestation/v4", routes=routes)])


class _Service:
    def __init__(self, folder: Path, authority: Authority) -> None:
        key = load_pem_private_key(read_bytes(folder / "signing.key"), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise not_a(folder / "signing.key", "RSA key")
        self._folder = folder
        self._authority = authority
        self._key = key
        self._secret = Secret(read_bytes(folder / "pseudonym.secret"))
        chain = (read_certificate(folder / f"{part}.pem").public_bytes(Encoding.PEM) for part in ("signing", "root"))
        self._chain = urlquote(b"".join(chain))

    async def sig_rl(self, request: Request) -> Response:
        """GET sigrl/{gid}."""
        if not self._subscribed(request):
            return Response(status_code=401)
        if request.path_params["group"] != GROUP[::-1].hex():
            return Response(status_code=404)
        version = read_state(self._folder).sig_rl_version
        listed = struct.pack("<I", version).ljust(SIG_RL_SIZE, b"\1") if version else b""
        return PlainTextResponse(base64.b64encode(listed))

    async def report(self, request: Request) -> Response:
        """POST report: a signed report on a quote, or 400 for anything but a quote of this service's machines."""
        if not self._subscribed(request):
            return Response(status_code=401)
        body = await request.body()
        try:
            if len(body) > _MAX_BODY:
                raise ValueError("too long")
            asked = json.loads(body)
            quote, nonce = base64.b64decode(asked["isvEnclaveQuote"], validate=True), asked.get("nonce", "")
            said = self._said(quote)
            if not isinstance(nonce, str) or len(nonce) > _MAX_NONCE:
                raise ValueError("nonce")
        except (ValueError, KeyError, TypeError, struct.error):
            return Response(status_code=400)
        now = datetime.now(UTC).replace(tzinfo=None)
        document = {
            "id": str(int.from_bytes(token_bytes(16))),
            "timestamp": now.isoformat(timespec="microseconds"),
            "version": 4,
            **said,
            "isvEnclaveQuoteBody": base64.b64encode(quote[:_SIGNED]).decode(),
            **({"nonce": nonce} if nonce else {}),
        }
        content = json.dumps(document, separators=(",", ":")).encode()
        signature = base64.b64encode(self._key.sign(content, PKCS1v15(), SHA256())).decode()
        headers = {"X-IASReport-Signature": signature, "X-IASReport-Signing-Certificate": self._chain}
        return Response(content, media_type="application/json", headers=headers)

    def _subscribed(self, request: Request) -> bool:
        given = request.headers.get("Ocp-Apim-Subscription-Key", "")
        return hmac.compare_digest(given.encode(), read_state(self._folder).subscription_key.encode())

    def _said(self, quote: bytes) -> dict[str, object]:
        """isvEnclaveQuoteStatus and its companion fields. Raises ValueError for bytes that are not an EPID quote."""
        header = _HEADER.unpack_from(quote)
        (size,) = struct.unpack_from("<I", quote, _SIGNED)
        if header[0] != _VERSION or header[2] != GROUP or size != len(quote) - _SIGNED - 4:
            raise ValueError("not an EPID quote of this group")
        (version,) = struct.unpack_from("<I", quote, _SIGNED + 4)
        ecdsa = quote[_SIGNED + 8 :]
        if ecdsa[48:_SIGNED] != quote[48:_SIGNED]:
            return {"isvEnclaveQuoteStatus": "SIGNATURE_INVALID"}
        if version != read_state(self._folder).sig_rl_version:
            return {"isvEnclaveQuoteStatus": "SIGRL_VERSION_MISMATCH"}
        now = datetime.now(UTC)
        try:
            found = dcap_qvl.verify_with_root_ca(
                ecdsa, self._collateral(now), self._authority.root_der, int(now.timestamp())
            )
        except ValueError as error:
            revoked = "evoked" in str(error)
            return {"isvEnclaveQuoteStatus": "KEY_REVOKED" if revoked else "SIGNATURE_INVALID"}
        return {
            "epidPseudonym": _pseudonym(self._secret, found.ppid, header[-1]),
            "advisoryURL": "https://security-center.intel.com",
            "advisoryIDs": found.advisory_ids,
            "isvEnclaveQuoteStatus": _STATUS.get(found.status, "GROUP_REVOKED"),
        }

    def _collateral(self, now: datetime) -> dcap_qvl.QuoteCollateralV3:
        source = self._authority
        tcb_info, qe_identity = source.tcb_info(now), source.qe_identity(now)
        return dcap_qvl.QuoteCollateralV3(
            source.ca_chain("platform").decode(),
            source.root_crl(now),
            source.pck_crl("platform", now),
            source.signing_chain.decode(),
            tcb_info.body.decode(),
            tcb_info.signature,
            source.signing_chain.decode(),
            qe_identity.body.decode(),
            qe_identity.signature,
        )
