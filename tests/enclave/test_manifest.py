"""The manifest and the measurement over what it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.enclave.manifest import parse_manifest
from attestgate.enclave.simulated import trusted
from attestgate.enclave.simulated.image import Images
from attestgate.enclave.simulated.measure import measure, read_contents
from attestgate.schemas.base import Refusal
from tests.support.enclave.probe import MANIFEST, Code
from tests.support.reasons import refusal_code


def measured(code: Code) -> bytes:
    return measure(code.manifest, code.root, code.settings).mrenclave


def test_reads_what_it_says() -> None:
    manifest = parse_manifest(MANIFEST.encode(), "test")
    assert (manifest.entry, manifest.isv_prod_id, manifest.isv_svn, manifest.debug) == ("probe", 7, 3, False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('entry = "probe"', 'entry = "probe; rm"'),
        ('entry = "probe"', ""),
        ('packages = ["probe", "attestgate.enclave", "attestgate.schemas"]', "packages = []"),
        ('"probe", "attestgate', '"../probe", "attestgate'),
        ("attestgate.enclave", "attestgate..enclave"),
        ("attestgate.enclave", "attestgate/enclave"),
        ('"msgpack"', '"msgpack; ; "'),
        ("PROBE_*", "LD_PRELOAD"),
        ("PROBE_*", "PYTHON*"),
        ("PROBE_*", "P*"),
        ("PROBE_*", "*"),
        ("PROBE_*", "ATTESTGATE_MEASURED"),
        ("isv_prod_id = 7", "isv_prod_id = 65536"),
        ("isv_svn = 3", 'isv_svn = "3"'),
        ("debug = false", "debug = 1979-05-27"),
        ("debug = false", "production = true"),
        ("debug = false", "debug ="),
    ],
)
def test_what_is_not_a_manifest_is_refused(old: str, new: str) -> None:
    assert old in MANIFEST
    with pytest.raises(Refusal) as refused:
        parse_manifest(MANIFEST.replace(old, new).encode(), "test")
    assert refusal_code(refused) in {"file.fields", "file.toml"}


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_text_is_refused(text: bytes) -> None:
    with pytest.raises(Refusal):
        parse_manifest(text, "test")


@pytest.mark.parametrize(
    ("variable", "admitted"),
    [("PROBE_X", True), ("PROBE_", True), ("PROBE", False), ("XPROBE_", False), ("LD_PRELOAD", False)],
)
def test_environment(variable: str, admitted: bool) -> None:
    passed = parse_manifest(MANIFEST.encode(), "test").passed({variable: "value"})
    assert passed == ({variable: "value"} if admitted else {})


def test_wildcard_never_reaches_what_steers_the_platform() -> None:
    manifest = parse_manifest(MANIFEST.replace("PROBE_*", "ATTESTGATE_*").encode(), "test")
    outside = {
        "ATTESTGATE_BUS": "b",
        "ATTESTGATE_MEASURED": "m",
        "ATTESTGATE_Measured": "m",
        "ATTESTGATE_ENCLAVE_FD": "3",
    }
    assert manifest.passed(outside) == {"ATTESTGATE_BUS": "b"}


def test_same_files_same_measurement_wherever_they_are(code: Code, tmp_path: Path) -> None:
    moved = Code(code.root.rename(tmp_path / "moved"))
    again = measured(moved)
    moved.root.rename(code.root)
    assert measured(code) == again


def test_bytecode_is_not_part_of_it(code: Code) -> None:
    before = measured(code)
    (code.root / "probe" / "__pycache__").mkdir()
    (code.root / "probe" / "__pycache__" / "late.cpython-311.pyc").write_bytes(b"evil")
    (code.root / "probe" / "late.pyc").write_bytes(b"evil")
    assert measured(code) == before
    names = {file.name for file in read_contents(code.manifest, code.root, code.settings).code}
    assert not any(name.endswith(".pyc") for name in names)


@pytest.mark.parametrize(
    "change",
    [
        lambda code: (code.root / "probe" / "late.py").write_text("VALUE = 1\n"),
        lambda code: (code.root / "probe" / "new.py").touch(),
        lambda code: (code.root / "probe" / "late.py").rename(code.root / "probe" / "later.py"),
        lambda code: (code.root / "attestgate" / "schemas" / "base.py").unlink(),
        lambda code: code.settings.write_text("manager_identity = 'bb'\n"),
        lambda code: code.manifest.write_text(MANIFEST.replace("PROBE_*", "OTHER_*")),
        lambda code: code.manifest.write_text(MANIFEST.replace('"packaging", ', "")),
        lambda code: code.manifest.write_text(MANIFEST.replace("debug = false", "debug = true")),
    ],
    ids=["file", "new file", "renamed", "removed", "settings", "environment", "distributions", "debug"],
)
def test_every_change_shows(code: Code, change: object) -> None:
    before = measured(code)
    assert callable(change)
    change(code)
    assert measured(code) != before


def test_changed_distribution_shows(code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    (site / "toy-1.dist-info").mkdir(parents=True)
    (site / "toy.py").write_text("GOOD = True\n")
    (site / "toy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (site / "toy-1.dist-info" / "RECORD").write_text("toy.py,,\n../../bin/toy,,\ntoy-1.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(site)
    code.manifest.write_text(MANIFEST.replace('"msgpack"', '"toy"'))
    before = measured(code)
    assert {file.name for file in trusted.site_files(["toy"])} == {"toy.py", "toy-1.dist-info/METADATA"}
    (site / "toy.py").write_text("GOOD = False\n")
    assert measured(code) != before
    (site / "toy.py").unlink()
    with pytest.raises(Refusal) as refused:
        measured(code)
    assert refusal_code(refused) == "measure.read"


def test_requirements_of_a_distribution_come_along() -> None:
    names = {file.name.split("/")[0] for file in trusted.site_files(["pydantic"])}
    assert {"pydantic", "pydantic_core", "annotated_types", "typing_extensions.py"} <= names
    assert "msgpack" not in names


def test_base_holds_the_interpreter_and_library_but_no_tests() -> None:
    names = {file.name for file in trusted.base_files()}
    assert trusted.PYTHON in names
    assert any(name.endswith("/os.py") for name in names)
    assert not any("/test/" in name or "site-packages" in name or name.endswith(".pyc") for name in names)


def test_missing_parts_are_named(code: Code) -> None:
    code.manifest.write_text(MANIFEST.replace('"msgpack"', '"no-such-distribution"'))
    with pytest.raises(Refusal) as refused:
        measured(code)
    assert refusal_code(refused) == "measure.distribution"
    code.manifest.write_text(MANIFEST.replace('"attestgate.schemas"', '"attestgate.no_such_package"'))
    with pytest.raises(Refusal) as refused:
        measured(code)
    assert refusal_code(refused) == "measure.package"


def test_package_that_is_a_link_is_measured_and_copied_as_what_it_leads_to(code: Code, tmp_path: Path) -> None:
    """As in a checkout, where src/attestgate holds links: the measurement is that of an installed wheel."""
    before, schemas = measured(code), code.root / "attestgate" / "schemas"
    schemas.rename(tmp_path / "elsewhere")
    schemas.symlink_to(tmp_path / "elsewhere")
    assert measured(code) == before
    images = Images(tmp_path / "images")
    image = images.build(read_contents(code.manifest, code.root, code.settings))
    copy = image.code / "attestgate" / "schemas" / "base.py"
    assert not copy.parent.is_symlink() and copy.read_bytes() == (schemas / "base.py").read_bytes()
    images.close()
    (tmp_path / "elsewhere" / "base.py").write_text("EVIL = True\n")
    assert measured(code) != before


def test_what_makes_a_folder_a_package_is_measured(code: Code) -> None:
    before = measured(code)
    (code.root / "attestgate" / "__init__.py").write_text("EVIL = True\n")
    assert measured(code) != before


def test_linked_folder_does_not_loop_and_is_not_inside(code: Code) -> None:
    before = measured(code)
    (code.root / "probe" / "loop").symlink_to(code.root / "probe")
    assert measured(code) == before


def test_settings_are_given_if_and_only_if_measured(code: Code) -> None:
    with pytest.raises(Refusal) as refused:
        measure(code.manifest, code.root, None)
    assert refusal_code(refused) == "measure.settings"
    code.manifest.write_text(MANIFEST.replace("measured_settings = true", "measured_settings = false"))
    with pytest.raises(Refusal) as refused:
        measured(code)
    assert refusal_code(refused) == "measure.settings"


def test_file_changed_between_measuring_and_copying_is_refused(code: Code, tmp_path: Path) -> None:
    contents = read_contents(code.manifest, code.root, code.settings)
    images = Images(tmp_path / "images")
    (code.root / "probe" / "late.py").write_text("VALUE = 'evil'\n")
    with pytest.raises(Refusal) as refused:
        images.build(contents)
    assert refusal_code(refused) == "measure.changed"
    assert not list((tmp_path / "images").glob("code-*"))
    images.close()
