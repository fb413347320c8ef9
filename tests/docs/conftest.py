"""The command in this process, and a deployment's files."""

from tests.cli.conftest import attestgate, deployed

__all__ = ["attestgate", "deployed"]
