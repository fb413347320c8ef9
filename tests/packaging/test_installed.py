"""What is released works without the checkout: the sdist, the wheel built from it, and an installation of that wheel.

Nothing is downloaded. The new environment sees the dependencies of the one that runs the tests through a `.pth` file
that names its site-packages. Python does not read the `.pth` files of a folder added that way, so the editable install
of the checkout has no effect there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tomli_w

import attestgate

pytestmark = pytest.mark.stack

ROOT = Path(attestgate.__file__).parents[2]
NAME = f"attestgate-{version('attestgate')}"
MEASURED = {"trust_domain": "test.example", "manager_identity": ["00" * 32], "suites": ["mlkem768-x25519"]}


@dataclass(frozen=True)
class Built:
    """The two wheels, and the sdist unpacked, which one of them was built from."""

    sdist: Path
    from_sdist: Path
    from_checkout: Path


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and an empty folder to work in."""

    folder: Path
    work: Path

    @property
    def package(self) -> Path:
        return self.folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages" / "attestgate"

    def run(self, *command: str | Path, **environment: str) -> str:
        """A command of this environment, knowing nothing of the one that the tests run in; its output."""
        program, *arguments = command
        ran = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=self.work,
            env={"PATH": os.defpath, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


def build(source: Path, target: str, into: Path) -> Path:
    """The one file that a build of `source` makes, by the backend that pyproject.toml names."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into], cwd=source, check=True)
    (made,) = into.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(["tar", "-xf", build(ROOT, "sdist", folder / "sdist"), "-C", folder], check=True)
    unpacked = folder / NAME
    return Built(unpacked, build(unpacked, "wheel", folder / "one"), build(ROOT, "wheel", folder / "other"))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with nothing but the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("installed")
    environment = Installed(folder / "venv", folder / "work")
    environment.work.mkdir()
    venv.create(environment.folder, symlinks=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", environment.folder / "bin" / "python"]
    subprocess.run(
        [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", built.from_sdist],
        check=True,
    )
    others = environment.package.with_name("dependencies.pth")
    others.write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return environment


def test_the_sdist_has_real_files_and_all_that_a_build_and_the_tests_need(built: Built) -> None:
    assert [path for path in built.sdist.rglob("*") if path.is_symlink()] == []
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = (named["readme"], "LICENSE", "pyproject.toml", "Makefile", "requirements.lock", "bench/drift.py")
    for name in (*needed, "src/attestgate/cli/main.py", "tests/packaging/test_installed.py", "docs/settings.md"):
        assert (built.sdist / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_the_wheel_from_the_sdist_is_the_checkouts(built: Built) -> None:
    assert contents(built.from_sdist) == contents(built.from_checkout)


def test_it_takes_one_name_and_brings_no_test(built: Built) -> None:
    names = contents(built.from_sdist)
    assert {name.split("/")[0] for name in names} == {"attestgate", f"{NAME}.dist-info"}
    parts = {part for name in names for part in name.split("/")}
    assert [part for part in parts if part in ("tests", "conftest.py") or part.startswith("test_")] == []
    packages = {name.split("/")[1] for name in names if name.startswith("attestgate/")}
    assert packages == {path.name for path in (ROOT / "src" / "attestgate").iterdir() if path.name != "__pycache__"}


def test_every_module_is_imported_from_the_wheel(installed: Installed) -> None:
    every = """
import importlib, pkgutil, sys
import attestgate
ELSEWHERE = {"os_ken", "tpm2_pytss"}  # of hosts with a TPM and of one SDN controller: not dependencies
for module in pkgutil.walk_packages(attestgate.__path__, "attestgate."):
    if not module.name.endswith(("__main__", ".boot")):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as missing:
            if missing.name.split(".")[0] not in ELSEWHERE:
                raise
print(*sorted(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "attestgate"))
"""
    files = [Path(name) for name in installed.run("python", "-c", every).split()]
    assert len(files) > 200
    assert [path for path in files if not path.is_relative_to(installed.package)] == []


def test_it_says_its_version(installed: Installed) -> None:
    assert installed.run("attestgate", "--version") == f"{version('attestgate')}\n"


def test_an_agent_of_the_wheel_measures_as_one_of_the_checkout(installed: Installed, tmp_path: Path) -> None:
    measured = tmp_path / "host.measured"
    measured.write_text(tomli_w.dumps(MEASURED), encoding="utf-8")
    here = subprocess.run(
        [sys.executable, "-m", "attestgate.cli", "measure", "host", measured],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(here.stdout.split()[0]) == 64
    assert installed.run("attestgate", "measure", "host", measured) == here.stdout


def test_the_demo_of_the_wheel_tells_the_whole_story(installed: Installed) -> None:
    with TemporaryDirectory(prefix="attestgate-test-") as short:  # a socket's path has 107 bytes at the most
        told = installed.run("attestgate", "demo", TMPDIR=short)
        assert list(installed.work.iterdir()) == list(Path(short).iterdir()) == []
    (held,) = re.findall(r"^    ([0-9]+) of \1 checks held\.$", told, re.MULTILINE)
    assert int(held) > 30
