"""The Gramine manifests as gramine-manifest renders them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from tests.support.enclave.probe import REPOSITORY

FOLDER = REPOSITORY / "compose" / "gramine"
VARIABLES = {
    "gramine.libos": "/usr/lib/gramine/libsysdb.so",
    "gramine.runtimedir()": "/usr/lib/gramine/runtime/glibc",
    "arch_libdir": "/lib/x86_64-linux-gnu",
    "python": "/usr/local/bin/python3.11",
    "stdlib": "/usr/local/lib/python3.11",
    "site": "/opt/attestgate/lib/python3.11/site-packages",
}


def rendered(role: str) -> dict[str, Any]:
    """A manifest as gramine-manifest renders it (Jinja variables and nothing else)."""
    text = (FOLDER / f"{role}-agent.manifest.template").read_text()
    assert "{%" not in text
    return tomllib.loads(re.sub(r"\{\{ (.+?) \}\}", lambda match: VARIABLES[match.group(1)], text))
