"""The demo's host: with a software TPM where there is one, and saying so where there is none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestgate.compose.demo import story
from attestgate.compose.demo.kernel import BOOTED, Kernel, with_boot
from attestgate.compose.demo.narrator import Narrator
from attestgate.compose.demo.software_tpm import missing
from attestgate.compose.local.recorded import CLEAN
from attestgate.compose.local.stack import Stack
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.schemas.events import reasons_of
from attestgate.schemas.messages import Outcome
from tests.support.ima.lists import ENTRIES


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="attestgate-test-") as name:
        yield Path(name)


def test_only_the_first_entry_is_made_again() -> None:
    genuine, made = entries(CLEAN.read_bytes()), entries(with_boot(CLEAN.read_bytes(), BOOTED))
    before, first = next(genuine), next(made)
    assert first.path == before.path == b"boot_aggregate" and first.digest != before.digest
    assert first.extends("sha1") == first.template_hash
    assert list(made) == list(genuine)


async def test_without_a_tpm_the_demo_says_so_and_how_to_get_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "missing", lambda: ["swtpm", "tpm2-pytss"])
    said: list[str] = []
    async with story.booted(folder, Narrator(said.append)) as kernel:
        assert kernel.tpm is None and kernel.measurement_list.read_bytes() == CLEAN.read_bytes()
        await kernel.drift()
        assert kernel.measurement_list.read_bytes() != CLEAN.read_bytes()
    (line,) = said
    assert "no TPM: swtpm, tpm2-pytss" in line and "make demo-tpm" in line


@pytest.mark.stack
@pytest.mark.skipif(bool(missing()), reason="make test-tpm installs tpm2-pytss and swtpm, and runs this")
async def test_a_host_with_a_tpm_is_anchored_drifts_and_comes_back(folder: Path) -> None:
    narrator = Narrator(lambda _: None)
    async with story.booted(folder, narrator) as kernel, Stack(folder / "stack") as stack:
        assert kernel.tpm is not None
        kernel.tpm_service = await stack.start_tpm(kernel.tpm.tcti)
        await story.enrol(stack, narrator, kernel)
        await story.attest_host(stack, narrator, kernel)
        assert narrator.checks and all(held for _, held in narrator.checks), narrator.checks
        await drifted(stack, kernel)
        mark = stack.events.mark
        await stack.agent(story.HOST).stop()
        await kernel.boot()
        await story.start_host(stack, kernel)
        trusted = await stack.until("host", story.HOST, "trusted", since=mark)
        assert Outcome.model_validate(trusted.data["outcome"]).integrity == "anchored"


async def drifted(stack: Stack, kernel: Kernel) -> None:
    """The drift is in the list and in the TPM: the list is anchored, and refused for what is on it."""
    mark = stack.events.mark
    await kernel.drift()
    untrusted = await stack.until("host", story.HOST, "untrusted", since=mark)
    assert [reason.code for reason in reasons_of(untrusted)] == ["ima.unknown", "ima.violation"]
    assert f"entry {ENTRIES['clean']}" in reasons_of(untrusted)[0].field
    assert Outcome.model_validate(untrusted.data["outcome"]).integrity == "anchored"
