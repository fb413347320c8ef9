"""The files an enclave may run: found, read and hashed. Nothing else exists inside.

Three trees: `base` is the interpreter and its standard library, `site` the trusted distributions, `code` the packages
of the manifest with the boot script and the measured settings. The C library and whatever else the dynamic linker loads
from the system count as part of the simulated machine.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from attestgate.schemas.base import Refusal

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = f"bin/{VERSION}"
"""Where the interpreter is in the base tree."""
BOOT = "boot.py"
SETTINGS = "measured"
"""Names of the boot script and the measured settings beside the code."""

_LEFT_OUT = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "tkinter",
    "turtledemo",
    "ensurepip",
}
_NOTES_OF_THE_INSTALLER = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


@dataclass(frozen=True)
class TrustedFile:
    """One file as it was when measured: its name inside its tree (POSIX), where it was, its SHA-256 (32 bytes)."""

    name: str
    source: Path
    sha256: bytes

    def read(self) -> bytes:
        """The exact bytes that were measured. Raises Refusal `measure.changed` if the file differs now."""
        data = _read(self.source)
        if hashlib.sha256(data).digest() != self.sha256:
            raise Refusal.because(
                "measure.changed",
                str(self.source),
                expected="the file as it was measured a moment ago",
                found="other bytes",
                action="stop what writes there, and launch again",
            )
        return data


def base_files() -> list[TrustedFile]:
    """The interpreter, its shared library if it has one, and the standard library without tests and demos."""
    files = [_trusted(PYTHON, Path(sys.base_exec_prefix) / PYTHON)]
    library = interpreter_library()
    if library is not None:
        files.append(_trusted(f"lib/{library.name}", library))
    home = f"{sys.platlibdir}/{VERSION}"
    pure, binary = Path(sys.base_prefix) / home, Path(sys.base_exec_prefix) / home
    files += _tree(pure, home)
    if not binary.samefile(pure):
        files += _tree(binary / "lib-dynload", f"{home}/lib-dynload")
    return sorted(files, key=lambda file: file.name)


def interpreter_library() -> Path | None:
    """libpython, where this interpreter is not linked with it statically: one of the files it has mapped (proc(5))."""
    name = sysconfig.get_config_var("INSTSONAME")
    for line in Path("/proc/self/maps").read_text().splitlines():
        mapped = Path(line.split(maxsplit=5)[-1])
        if mapped.name == name:
            return mapped
    return None


def site_files(requirements: Iterable[str]) -> list[TrustedFile]:
    """The files of installed distributions and all their requirements. Raises Refusal `measure.distribution`."""
    files: dict[str, TrustedFile] = {}
    for installed in _with_requirements(requirements):
        for path in _listed(installed) or ():
            if _is_code_or_data(path.parts):
                name = path.as_posix()
                files[name] = _trusted(name, Path(str(installed.locate_file(path))))
    return sorted(files.values(), key=lambda file: file.name)


def code_files(code_root: Path, packages: Iterable[str]) -> list[TrustedFile]:
    """The files of packages under a code root and their parents' `__init__.py`. Raises Refusal `measure.package`.

    A package's own folder may be a link, as in a checkout: its target is what is read, hashed and copied.
    """
    files: dict[str, TrustedFile] = {}
    for package in packages:
        parts = package.split(".")
        folder = code_root.joinpath(*parts)
        if not folder.is_dir():
            raise Refusal.because(
                "measure.package",
                str(folder),
                expected="a package's folder",
                found="no such folder",
                action="correct `packages` in the manifest, or the code root",
            )
        parents = ("/".join((*parts[:depth], "__init__.py")) for depth in range(1, len(parts)))
        found = [_trusted(name, code_root / name) for name in parents if (code_root / name).is_file()]
        files |= {file.name: file for file in (*found, *_tree(folder, "/".join(parts)))}
    return sorted(files.values(), key=lambda file: file.name)


def one_file(name: str, source: Path) -> TrustedFile:
    """A single file. Raises Refusal `measure.read`."""
    return _trusted(name, source)


def _tree(folder: Path, name: str) -> Iterator[TrustedFile]:
    """The files under a folder, except bytecode. Symbolic links to folders are not followed: they may loop."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    for path in paths:
        if path.is_dir():
            if not (path.is_symlink() or path.name in _LEFT_OUT or path.name.startswith("config-")):
                yield from _tree(path, f"{name}/{path.name}")
        elif path.is_file() and path.suffix not in {".pyc", ".a"}:
            yield _trusted(f"{name}/{path.name}", path)


def _with_requirements(requirements: Iterable[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    done: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in done:
            continue
        done.add(str(wanted))
        try:
            installed = distribution(wanted.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or _listed(installed) is None:
            raise Refusal.because(
                "measure.distribution",
                wanted.name,
                expected="an installed distribution with a list of its files",
                found="no such distribution",
                action="install it where the platform's daemon runs",
            )
        found[canonicalize_name(wanted.name)] = installed
        extras = wanted.extras or {""}
        for needed in map(Requirement, installed.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return [found[name] for name in sorted(found)]


def _listed(installed: Distribution) -> list[PurePosixPath] | None:
    """The files that its RECORD lists. Not `files`, which since Python 3.12 leaves out those that are missing."""
    record = installed.read_text("RECORD")
    return None if record is None else [PurePosixPath(row[0]) for row in csv.reader(record.splitlines()) if row]


def _is_code_or_data(parts: tuple[str, ...]) -> bool:
    if parts[0] == ".." or "__pycache__" in parts or parts[-1].endswith((".pyc", ".pth")):
        return False
    return not (parts[0].endswith(".dist-info") and parts[-1] in _NOTES_OF_THE_INSTALLER)


def _trusted(name: str, source: Path) -> TrustedFile:
    return TrustedFile(name, source, hashlib.sha256(_read(source)).digest())


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise _unreadable(source, error) from None


def _unreadable(path: Path, error: OSError) -> Refusal:
    return Refusal.because(
        "measure.read",
        str(path),
        expected="a readable trusted file or folder",
        found=error.strerror,
        action="restore it, or remove it from the manifest",
    )
