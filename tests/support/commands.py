"""The commands of a page: the lines that begin with `$ ` in its console blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from attestgate.cli.reference import DOCS

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str, section: str = "") -> list[str]:
    """Every command of a page, or of the section under one heading, in its order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if section:
        parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
        text = parts[parts.index(section) + 1]
    blocks = BLOCK.findall(text)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run_all(lines: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run commands in one shell, as somebody types them; the first that fails ends it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-eux", "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
