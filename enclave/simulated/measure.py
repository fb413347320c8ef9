"""MRENCLAVE of the simulated platform: one hash over every trusted file, the manifest and the measured settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import attestgate
from attestgate.enclave.manifest import Manifest, read_manifest
from attestgate.enclave.simulated.quoting_enclave import Measurement
from attestgate.enclave.simulated.trusted import (
    BOOT,
    SETTINGS,
    TrustedFile,
    base_files,
    code_files,
    one_file,
    site_files,
)
from attestgate.schemas.base import Refusal
from attestgate.schemas.binding import canonical

CODE_ROOT = Path(attestgate.__file__).parents[1]
"""The folder of this installation's package: site-packages, or src in a checkout."""
_BOOT_SCRIPT = Path(__file__).with_name("boot.py")


@dataclass(frozen=True)
class Contents:
    """Everything that makes up an enclave, as read at one moment."""

    manifest: Manifest
    base: list[TrustedFile]
    site: list[TrustedFile]
    code: list[TrustedFile]
    """With the boot script and the measured settings."""
    measurement: Measurement


def agent_manifest(kind: Literal["host", "app"], code_root: Path = CODE_ROOT) -> Path:
    """Where the manifest of one of the agents is under a code root."""
    return code_root / "attestgate" / f"{kind}_agent" / "enclave.toml"


def measure(manifest_path: Path, code_root: Path, measured_path: Path | None) -> Measurement:
    """The measurement that the platform would take of the current files. Raises Refusal (`file.*`, `measure.*`)."""
    return read_contents(manifest_path, code_root, measured_path).measurement


def read_contents(manifest_path: Path, code_root: Path, measured_path: Path | None) -> Contents:
    """Read and hash everything an enclave is made of. Raises Refusal (`file.*`, `measure.*`)."""
    manifest, manifest_bytes = read_manifest(manifest_path)
    if manifest.measured_settings != (measured_path is not None):
        raise Refusal.because(
            "measure.settings",
            str(measured_path or manifest_path),
            expected="a file of measured settings" if manifest.measured_settings else "no measured settings",
            found="a file" if measured_path else "no file",
            action="give the file if and only if the manifest has measured_settings = true",
        )
    base, site, code = base_files(), site_files(manifest.distributions), code_files(code_root, manifest.packages)
    code.append(one_file(BOOT, _BOOT_SCRIPT))
    if measured_path is not None:
        code.append(one_file(SETTINGS, measured_path))
    statement = canonical(
        "simulated mrenclave", manifest_bytes, tree_digest(base), tree_digest(site), tree_digest(code)
    )
    measurement = Measurement(
        mrenclave=hashlib.sha256(statement).digest(),
        isv_prod_id=manifest.isv_prod_id,
        isv_svn=manifest.isv_svn,
        debug=manifest.debug,
    )
    return Contents(manifest, base, site, code, measurement)


def tree_digest(files: Iterable[TrustedFile]) -> bytes:
    """SHA-256 (32 bytes) over the names and hashes of a tree's files, in order."""
    parts = [part for file in files for part in (file.name, file.sha256)]
    return hashlib.sha256(canonical("simulated tree", *parts)).digest()
