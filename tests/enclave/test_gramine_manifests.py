"""The Gramine manifests: valid TOML, no way in for what is not measured, every mounted file trusted or meant.

No hardware was available: what can be checked without Gramine is checked here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from attestgate.enclave.manifest import read_manifest
from attestgate.enclave.providers.memory import GRAMINE_TMPFS
from attestgate.schemas.settings import HostSettings, load_settings
from tests.support.enclave.gramine import FOLDER, VARIABLES, rendered
from tests.support.enclave.probe import REPOSITORY

ROLES = {"host": "host_agent", "app": "app_agent"}
IMA_LIST = "/sys/kernel/security/ima/binary_runtime_measurements"
UNMEASURED = {"file:/etc/attestgate/agent.toml", "file:/run/secrets/agent.creds", "file:/volumes/"}


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_no_debug_and_dcap(role: str) -> None:
    sgx = rendered(role)["sgx"]
    assert sgx["debug"] is False
    assert sgx["remote_attestation"] == "dcap"
    assert sgx["file_check_policy"] == "strict"


def test_the_same_identity_as_on_the_simulated_platform(role: str) -> None:
    simulated, _ = read_manifest(REPOSITORY / ROLES[role] / "enclave.toml")
    document = rendered(role)
    assert (document["sgx"]["isvprodid"], document["sgx"]["isvsvn"]) == (simulated.isv_prod_id, simulated.isv_svn)
    assert document["loader"]["argv"][-2:] == [simulated.entry, "/etc/attestgate/agent.toml"]
    assert document["loader"]["argv"][-3] == "-m"
    assert "-P" in document["loader"]["argv"], "with -m, Python imports from the working folder first"


def test_it_is_written_as_gramine_1_8_and_newer_read_it(role: str) -> None:
    """Gramine 1.9 refuses the entry point as a string."""
    assert rendered(role)["loader"]["entrypoint"] == {"uri": f"file:{VARIABLES['gramine.libos']}"}


def test_what_is_written_for_a_moment_stays_in_the_enclaves_memory(role: str) -> None:
    assert {"type": "tmpfs", "path": str(GRAMINE_TMPFS)} in rendered(role)["fs"]["mounts"]


def test_nothing_insecure_and_nothing_from_the_hosts_environment(role: str) -> None:
    document = rendered(role)
    assert "insecure" not in (FOLDER / f"{role}-agent.manifest.template").read_text()
    environment = document["loader"]["env"]
    assert all(isinstance(value, str) for value in environment.values())  # a table would be a passthrough
    assert set(environment) == {
        "PATH",
        "LANG",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONDONTWRITEBYTECODE",
        "ATTESTGATE_PROFILE",
        "ATTESTGATE_PLATFORM",
        "ATTESTGATE_MEASURED",
    }
    assert environment["PYTHONPATH"] == VARIABLES["site"]


def test_the_environment_decides_what_an_unmeasured_file_must_not(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings file is the host's word: it cannot choose the measured settings, the platform or the profile."""
    for name, value in rendered(role)["loader"]["env"].items():
        if name.startswith("ATTESTGATE_"):
            monkeypatch.setenv(name, value)
    path = tmp_path / "agent.toml"
    path.write_text(
        'profile = "development"\nid = "h1"\nmeasured = "/volumes/evil.toml"\nvolumes = ["/volumes/app-1"]\n'
        '[bus]\nurl = "nats://bus"\ncredentials = "/run/secrets/agent.creds"\n'
        '[platform]\nkind = "gramine"\n'
    )
    settings = load_settings(HostSettings, path)
    assert str(settings.measured) == "/attestgate/measured.toml"
    assert (settings.profile, settings.platform.kind) == ("production", "gramine")
    assert str(settings.measurement_list) == IMA_LIST


def test_every_mounted_file_is_trusted_or_meant(role: str) -> None:
    document = rendered(role)
    trusted, allowed = document["sgx"]["trusted_files"], document["sgx"]["allowed_files"]
    known = {uri.rstrip("/") for uri in (*trusted, *allowed)}
    for mount in document["fs"]["mounts"]:
        if mount.get("type") == "tmpfs":
            continue
        assert mount["uri"] in known, mount
        assert mount["path"] == mount["uri"].removeprefix("file:") or mount["path"] == "/lib"
    assert set(allowed) == UNMEASURED | ({f"file:{IMA_LIST}"} if role == "host" else set())
    assert not set(trusted) & set(allowed)
    assert "file:/attestgate/measured.toml" in trusted
    for needed in ("python", "stdlib", "site", "arch_libdir", "gramine.libos"):
        assert any(uri.rstrip("/") == f"file:{VARIABLES[needed]}" for uri in trusted), needed
    assert not any(outer != inner and inner.startswith(outer) for outer in allowed for inner in trusted)


def test_the_packages_are_where_the_manifest_looks(role: str) -> None:
    """All that the simulated platform measures of this project is under site-packages, which is trusted whole."""
    simulated, _ = read_manifest(REPOSITORY / ROLES[role] / "enclave.toml")
    packaged = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert packaged["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/attestgate"]
    for package in simulated.packages:
        assert (REPOSITORY / "src" / package.replace(".", "/") / "__init__.py").is_file(), package


def test_the_image_renders_with_these_variables_and_signs() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    given = set(re.findall(r"-D(\w+)=", text))
    wanted = {name for name in VARIABLES if not name.startswith("gramine.")}
    assert given == wanted
    assert "gramine-sgx-sign" in text
    assert "id=enclave_key,required=true" in text


def test_the_override_gives_the_devices_and_takes_the_simulation_away() -> None:
    text = (REPOSITORY / "compose" / "compose.sgx.yaml").read_text()
    for needed in ("/dev/sgx_enclave", "/dev/sgx_provision", "/var/run/aesmd", "compose/gramine/Dockerfile"):
        assert needed in text
    base = (REPOSITORY / "compose" / "compose.yaml").read_text()
    services = set(re.findall(r"^  ([a-z0-9-]+):", text[text.index("services:") : text.index("\nsecrets:")], re.M))
    assert services <= set(re.findall(r"^  ([a-z0-9-]+):", base, re.M))
    for name in ("machine", "pccs", "enrol"):
        assert re.search(rf"^  {name}: {{profiles: \[simulated\]}}$", text, re.M)
