"""The host's TPM through tpm2-pytss: enrolment and quotes. Runs on the host, outside the enclave.

The EK is created from its default template (TCG EK Credential Profile, annex B), so that it is the key in the vendor's
certificate. The AK is a primary key of the endorsement hierarchy: the TPM derives the same one from its own seed each
time, so nothing has to be stored, and it lasts as long as the EK does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from attestgate.schemas.base import Refusal
from attestgate.schemas.host_policy import BOOT_PCRS, IMA_PCR, Bank
from attestgate.schemas.tpm import TpmChallenge, TpmDescription, TpmQuote

os.environ.setdefault("TSS2_LOG", "all+NONE")  # its errors are raised; it must not print them as well
try:
    import tpm2_pytss as tss
    from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template
except ImportError:
    tss = None

EK_KINDS = ("EK-RSA2048", "EK-ECC256", "EK-HIGH-RSA2048", "EK-HIGH-ECC256", "EK-HIGH-ECC384")
"""Endorsement keys to look for, in order, by the place of their certificates: templates L-1, L-2, H-1, H-2, H-3."""

PCRS = (*BOOT_PCRS, IMA_PCR)
DEVICE = "device:/dev/tpmrm0"
"""The kernel's resource manager, as a TCTI string."""


class Tpm:
    """One TPM, by its TCTI: `device:/dev/tpmrm0`, or `swtpm:host=127.0.0.1,port=2321`. Must be closed."""

    def __init__(self, tcti: str) -> None:
        """Open it. Raises Refusal (`tpm.bindings`, `tpm.device`)."""
        if tss is None:
            raise Refusal.because(
                "tpm.bindings",
                "tpm2-pytss",
                expected="the Python package, installed",
                found="no such package",
                action="apt-get install libtss2-dev pkg-config, then pip install -r requirements-tpm.lock",
            )
        with _failures("tpm.device", tcti):
            self._esys = tss.ESAPI(tcti)

    def describe(self) -> TpmDescription:
        """The EK's certificate and the AK. Raises Refusal (`tpm.ek`, `tpm.command`)."""
        with _failures("tpm.command", "describe"):
            certificate, _ = self._ek_template()
            with self._attestation_key() as (_, public):
                return TpmDescription(ek_certificate=_der(certificate).hex(), ak=public.publicArea.marshal().hex())

    def activate(self, challenge: TpmChallenge) -> bytes:
        """TPM2_ActivateCredential: the credential, if the challenge was made for this TPM's EK and AK.

        Raises Refusal (`tpm.ek`, `tpm.command`).
        """
        blob = tss.TPM2B_ID_OBJECT(bytes.fromhex(challenge.credential_blob))
        secret = tss.TPM2B_ENCRYPTED_SECRET(bytes.fromhex(challenge.secret))
        with (
            _failures("tpm.command", "activate"),
            self._attestation_key() as (ak, _),
            self._endorsement_key() as (ek, session),
        ):
            credential = self._esys.activate_credential(
                ak, ek, blob, secret, session1=tss.ESYS_TR.PASSWORD, session2=session
            )
            return bytes(credential)

    def quote(self, nonce: bytes, bank: Bank) -> TpmQuote:
        """A quote over PCR 0-10 of a bank that answers `nonce`. Raises Refusal (`tpm.command`, `tpm.moving`)."""
        selection = f"{bank}:{','.join(map(str, PCRS))}"
        with _failures("tpm.command", "quote"), self._attestation_key() as (ak, _):
            for _attempt in range(5):
                before = self._values(bank)
                message, signature = self._esys.quote(ak, selection, nonce)
                # Not a security check (the manager compares the values with pcrDigest): it spares a quote that would
                # be refused because a program was measured in between.
                if before == self._values(bank):
                    return TpmQuote(message=bytes(message), signature=signature.marshal(), pcrs=b"".join(before))
        raise Refusal.because(
            "tpm.moving",
            "PCR 10",
            expected="values that do not change during a quote",
            found="values that changed during five quotes",
            action="retry when fewer programs are starting",
        )

    def close(self) -> None:
        """Close the TPM."""
        self._esys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _values(self, bank: Bank) -> list[bytes]:
        """The values of PCR 0-10, read a few at a time as the TPM returns them."""
        values: list[bytes] = []
        while len(values) < len(PCRS):
            wanted = ",".join(map(str, PCRS[len(values) :]))
            _, _, digests = self._esys.pcr_read(f"{bank}:{wanted}")
            values += [bytes(digest) for digest in digests]
        return values

    def _ek_template(self) -> tuple[bytes, Any]:
        read = NVReadEK(self._esys)
        for kind in EK_KINDS:
            try:
                certificate, template = create_ek_template(kind, read)
            except (NoSuchIndex, ValueError):  # the latter for a certificate of the high range
                continue
            if certificate:
                return certificate, template
        raise Refusal.because(
            "tpm.ek",
            "EK certificate",
            expected=f"an EK certificate in the TPM's NV memory, of {' or '.join(EK_KINDS)}",
            found="no such certificate",
            action="ask the vendor for the certificate, or use a TPM that has one",
        )

    @contextmanager
    def _endorsement_key(self) -> Iterator[tuple[Any, Any]]:
        """The EK, and the session that its template requires: policy in the low range, password in the high range."""
        _, template = self._ek_template()
        handle, *_ = self._esys.create_primary(None, template, tss.ESYS_TR.ENDORSEMENT)
        try:
            if template.publicArea.objectAttributes & tss.TPMA_OBJECT.USERWITHAUTH:
                yield handle, tss.ESYS_TR.PASSWORD
            else:
                with self._endorsement_session() as session:
                    yield handle, session
        finally:
            self._esys.flush_context(handle)

    @contextmanager
    def _attestation_key(self) -> Iterator[tuple[Any, Any]]:
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
        # noda: without it, each power cut after a quote counts as a wrong password, until the TPM is in lockout
        template = tss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=attributes, nameAlg="sha256")
        handle, public, *_ = self._esys.create_primary(None, template, tss.ESYS_TR.ENDORSEMENT)
        try:
            yield handle, public
        finally:
            self._esys.flush_context(handle)

    @contextmanager
    def _endorsement_session(self) -> Iterator[Any]:
        """TPM2_PolicySecret with the endorsement hierarchy's authorization."""
        session = self._esys.start_auth_session(
            tss.ESYS_TR.NONE,
            tss.ESYS_TR.NONE,
            tss.TPM2_SE.POLICY,
            tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL),
            tss.TPM2_ALG.SHA256,
        )
        try:
            self._esys.policy_secret(tss.ESYS_TR.ENDORSEMENT, session)
            yield session
        finally:
            self._esys.flush_context(session)


def _der(padded: bytes) -> bytes:
    """A certificate without the padding of its NV index: DER states its own length (X.690, 8.1.3)."""
    if len(padded) > 4 and padded[:2] == b"\x30\x82":
        return padded[: 4 + int.from_bytes(padded[2:4], "big")]
    return padded


@contextmanager
def _failures(code: str, what: str) -> Iterator[None]:
    """Turn an error of the TPM or its driver into a refusal."""
    try:
        yield
    except tss.TSS2_Exception as error:
        raise Refusal.because(
            code,
            f"TPM, {what}",
            expected="a TPM that answers",
            found=str(error),
            action="check the TCTI, the permissions of the device, and the TPM's hierarchy passwords",
        ) from None
