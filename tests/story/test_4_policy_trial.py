"""A set of policies on trial at the hosts of a running stack: who would fail under it, and nobody is cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attestgate.compose.local.plan import POLICY_AUTHOR, TRUST_DOMAIN
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.compose.local.recorded import CLEAN, CLEAN_ENTRIES
from attestgate.compose.local.stack import Stack
from attestgate.manager.local.keyfiles import read_identity
from attestgate.manager.verification.ima.measurement_list import frames
from attestgate.schemas.base import pack
from attestgate.schemas.signing import Signer
from tests.support.story import APPS, HOST, through

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


async def test_who_fails_under_new_policies_is_told_and_nobody_is_cut_off(stack: Stack, tmp_path: Path) -> None:
    await through(stack, *APPS)
    *known, _ = frames(CLEAN.read_bytes(), "little")
    status, shorter = await tried(stack, tmp_path, b"".join(known))
    assert (status, shorter["name"], shorter["entries"]) == (1, HOST, CLEAN_ENTRIES)
    assert [entry["index"] for entry in shorter["unknown"]] == [CLEAN_ENTRIES - 1]
    assert await tried(stack, tmp_path, CLEAN.read_bytes()) == (
        0,
        {"name": HOST, "entries": CLEAN_ENTRIES, "unknown": [], "problem": ""},
    )
    await through(stack, *APPS)


async def tried(stack: Stack, folder: Path, known: bytes) -> tuple[int, dict[str, Any]]:
    """Exit status and the one trial of `policy diff` with a signed set that knows what is on a list."""
    (folder / "list").write_bytes(known)
    author = Signer(TRUST_DOMAIN, read_identity(stack.plan.keys / "policy-authors" / f"{POLICY_AUTHOR}.pem"))
    (folder / "set.signed").write_bytes(pack(LearnedPolicies.learn(folder / "list").command(author, version=2)))
    status, output = await stack.command("policy", "diff", str(folder / "set.signed"), "--against", "hosts", "--json")
    (trial,) = json.loads(output)["trials"]
    return status, trial
