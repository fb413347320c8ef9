"""A software TPM of the test's own (Debian's swtpm), made with an EK certificate, on unix sockets in a folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from manager.verification.ima_list import entries

HINT = "make test-tpm installs tpm2-pytss and swtpm, and runs this"


def skip_without_tpm_tools() -> None:
    """Skip a module where there is no swtpm, or no way to talk to one."""
    pytest.importorskip("tpm2_pytss", reason=HINT)
    if not all(map(shutil.which, ("swtpm", "swtpm_setup", "swtpm_localca"))):
        pytest.skip(HINT, allow_module_level=True)


class Swtpm:
    """One machine's TPM. `reboot` is a power cycle: its PCRs start from zero and its resetCount rises."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state, self._ca = folder / "state", folder / "ca"
        self._socket, self._control = folder / "tpm.sock", folder / "tpm.sock.ctrl"
        self._process: subprocess.Popen[bytes] | None = None
        self._manufacture()
        self.start()

    @property
    def tcti(self) -> str:
        """How tpm2-pytss reaches it."""
        return f"swtpm:path={self._socket}"

    @property
    def roots(self) -> list[Path]:
        """The vendor's certificates: swtpm's own local CA."""
        return [self._ca / "swtpm-localca-rootca-cert.pem", self._ca / "issuercert.pem"]

    def start(self) -> None:
        """Switch it on; its sockets are there before it is, so nothing has to be waited for."""
        listening = [_listen(path) for path in (self._socket, self._control)]
        server, control = (f"type=unixio,fd={one.fileno()}" for one in listening)
        where = ["--tpmstate", f"dir={self._state}", "--server", server, "--ctrl", control]
        self._process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", *where, "--flags", "startup-clear", "--log", f"file={self._folder / 'log'}"],
            pass_fds=[one.fileno() for one in listening],
            stderr=subprocess.DEVNULL,
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

    def measure(self, boot: tuple[bytes, ...], measured: bytes) -> None:
        """Play firmware and kernel: extend PCR 0-9 with one value each, PCR 10 with every entry of a list."""
        import tpm2_pytss as tss  # type: ignore[import-not-found]

        with tss.ESAPI(self.tcti) as esys:
            for index, value in enumerate(boot):
                _extend(tss, esys, index, value)
            for entry in entries(measured):
                _extend(tss, esys, 10, entry.extends("sha256"))

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
            ["swtpm_setup", "--tpm2", *where, "--create-ek-cert", "--pcr-banks", "sha1,sha256", "--overwrite"],
            check=True,
            capture_output=True,
        )


def _extend(tss: Any, esys: Any, index: int, digest: bytes) -> None:
    values = tss.TPML_DIGEST_VALUES([tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))])
    esys.pcr_extend(tss.ESYS_TR(index), values)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(8)
    return server
