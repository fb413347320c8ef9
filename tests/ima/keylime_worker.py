"""Runs in keylime's own environment: which lines of an ASCII list it would fail, each judged on its own."""

from __future__ import annotations

import json
import logging
import sys
import types

sys.modules.setdefault("gpg", types.ModuleType("gpg"))  # imported by keylime, not used here
logging.disable(logging.CRITICAL)

from keylime.ima import ima  # noqa: E402

given = json.load(sys.stdin)
failing = []
for number, line in enumerate(given["lines"]):
    _, failure = ima.process_measurement_list(None, [line], json.loads(json.dumps(given["policy"])))
    if failure:
        failing.append(number)
json.dump(failing, sys.stdout)
