"""Who has anything to do with a folder: found in /proc by command line, environment and working directory."""

from __future__ import annotations

import os
from pathlib import Path


def processes_of(folder: Path) -> list[str]:
    """`pid command` of every process but this one that names `folder` in one of them. Zombies have nothing any more."""
    needle, found = os.fsencode(folder), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            about = [command, (entry / "environ").read_bytes(), os.fsencode((entry / "cwd").readlink())]
        except OSError:
            continue  # it ended, or is another user's
        if any(needle in part for part in about):
            found.append(f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')}")
    return found
