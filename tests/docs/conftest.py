"""The command in this process, and a deployment's files."""

from __future__ import annotations

from tests.support.cli.fixtures import attestgate, deployed

__all__ = ["attestgate", "deployed"]
