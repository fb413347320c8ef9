"""`attestgate verify ima` in this process."""

from __future__ import annotations

import json
from typing import Any

import typer
from typer.testing import CliRunner

from attestgate.cli.verify_ima import ImaCommand, verify_ima

KEYS = {"accepted", "boot_state", "entries", "anchored_entries", "violations", "pcr10", "unknown", "reasons"}
app = typer.Typer()
app.command(cls=ImaCommand)(verify_ima)


def run(*arguments: object, status: int) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == status, result.output
    assert result.stderr == ""
    shown: dict[str, Any] = json.loads(result.stdout)
    assert shown.keys() >= KEYS and shown["accepted"] is (status == 0)
    assert shown["pcr10"].keys() == {"sha1", "sha256", "sha384"}
    return shown
