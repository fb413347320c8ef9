"""A software TPM (Debian's swtpm) with an EK certificate, on unix sockets in a folder."""

from __future__ import annotations

import ctypes
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attestgate.bus.server.embedded import die_with_parent
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.schemas.host_policy import IMA_PCR

try:
    import tpm2_pytss as tss
except ImportError:
    tss = None

PROGRAMS = ("swtpm", "swtpm_setup", "swtpm_localca")
SWTPM, SETUP = ("swtpm", "socket", "--tpm2"), ("swtpm_setup", "--tpm2")
DRIVER = "libtss2-tcti-swtpm.so.0"


def missing() -> list[str]:
    """The requirements of a software TPM that are missing here."""
    found = [program for program in PROGRAMS if shutil.which(program) is None]
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        found.append(DRIVER)
    return found if tss is not None else [*found, "tpm2-pytss"]


class SoftwareTpm:
    """One machine's TPM. `reboot` is a power cycle: its PCRs start from zero and its resetCount increases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state, self._ca = folder / "state", folder / "ca"
        self._socket, self._control = folder / "tpm.sock", folder / "tpm.sock.ctrl"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def made(cls, folder: Path) -> SoftwareTpm:
        """A new TPM, switched off, with an EK and its certificate."""
        tpm = cls(folder)
        tpm._manufacture()
        return tpm

    @property
    def tcti(self) -> str:
        """Its TCTI string for tpm2-pytss."""
        return f"swtpm:path={self._socket}"

    @property
    def roots(self) -> list[Path]:
        """The vendor's certificates: swtpm's own local CA."""
        return [self._ca / "swtpm-localca-rootca-cert.pem", self._ca / "issuercert.pem"]

    def start(self) -> None:
        """Switch it on, from the main thread; its sockets exist before it does, so there is nothing to wait for."""
        listening = [_listen(path) for path in (self._socket, self._control)]
        server, control = (f"type=unixio,fd={one.fileno()}" for one in listening)
        where = ["--tpmstate", f"dir={self._state}", "--server", server, "--ctrl", control]
        self._process = subprocess.Popen(
            [*SWTPM, *where, "--flags", "startup-clear", "--log", f"file={self._folder / 'log'}"],
            pass_fds=[one.fileno() for one in listening],
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(),
        )
        for one in listening:
            one.close()

    def stop(self) -> None:
        """Switch it off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def reboot(self) -> None:
        """Off and on again."""
        self.stop()
        self.start()

    def measure(self, firmware: Iterable[bytes], measured: bytes) -> None:
        """Act as firmware and kernel: extend PCR 0-9 with one value each, PCR 10 with every entry of a list."""
        with tss.ESAPI(self.tcti) as esys:
            for index, value in enumerate(firmware):
                _extend(esys, index, value)
            for entry in entries(measured):
                _extend(esys, IMA_PCR, entry.extends("sha256"))

    def _manufacture(self) -> None:
        for folder in (self._state, self._ca):
            folder.mkdir()
        local_ca = "".join(
            f"{key} = {self._ca / name}\n"
            for key, name in (
                ("statedir", ""),
                ("signingkey", "signkey.pem"),
                ("issuercert", "issuercert.pem"),
                ("certserial", "certserial"),
            )
        )
        (self._folder / "localca.conf").write_text(local_ca)
        (self._folder / "localca.options").write_text("--platform-manufacturer test\n")
        (self._folder / "setup.conf").write_text(
            f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
            f"create_certs_tool_config = {self._folder / 'localca.conf'}\n"
            f"create_certs_tool_options = {self._folder / 'localca.options'}\n"
        )
        where = ["--tpmstate", str(self._state), "--config", str(self._folder / "setup.conf")]
        subprocess.run(
            [*SETUP, *where, "--create-ek-cert", "--pcr-banks", "sha1,sha256", "--overwrite"],
            check=True,
            capture_output=True,
        )


def _extend(esys: Any, index: int, digest: bytes) -> None:
    values = tss.TPML_DIGEST_VALUES([tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))])
    esys.pcr_extend(tss.ESYS_TR(index), values)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(8)
    return server
