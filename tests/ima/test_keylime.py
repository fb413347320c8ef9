"""Every entry's verdict beside Keylime's, where there is a Keylime: ATTESTGATE_KEYLIME names its interpreter.

Keylime wants an environment of its own: `make test-keylime` makes it and runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from attestgate.manager.policy.policy_trial import try_on
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.manager.verification.ima.runtime_policy import RuntimePolicy, load
from tests.support.ima.lists import VECTORS, document, recorded

KEYLIME = os.environ.get("ATTESTGATE_KEYLIME")
pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not KEYLIME, reason="ATTESTGATE_KEYLIME names no interpreter: make test-keylime"),
]

CLEAN, DRIFT = recorded("clean"), recorded("drift")
HALF = document(CLEAN).model_copy(update={"digests": dict(list(document(CLEAN).digests.items())[::2])})
POLICIES = {
    "clean": document(CLEAN),
    "drift": document(DRIFT),
    "half of clean": HALF,
    "half, and the rest of /usr/lib excluded": HALF.model_copy(update={"excludes": ["/usr/lib/.*"]}),
    "an exclude in the middle of a path": HALF.model_copy(update={"excludes": ["lib", "/etc/[a-m]"]}),
    "other digests": HALF.model_copy(update={"digests": {path: ["00" * 32] for path in HALF.digests}}),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("name", ["clean", "drift"])
def test_each_entry_is_judged_alike(name: str, policy: RuntimePolicy) -> None:
    text = policy.text()
    lines = (VECTORS / f"{name}.ascii").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    told = subprocess.run(
        [str(KEYLIME), str(Path(__file__).with_name("keylime_worker.py"))],
        input=json.dumps({"lines": lines, "policy": json.loads(text)}),
        capture_output=True,
        text=True,
        check=True,
    )
    violations = [entry.number for entry in entries(recorded(name)) if entry.violation]
    unknown = [entry.index for entry in try_on(load(text), name, recorded(name)).unknown]
    assert [number for number in json.loads(told.stdout) if number not in violations] == unknown
