"""The command run in this process, and the settings files of a deployment for it to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO

import pytest
import structlog
import tomli_w

from attestgate.cli.main import run
from attestgate.compose.local.plan import GATEWAY, OPERATOR, POLICY_AUTHOR, TRUST_DOMAIN, Plan
from attestgate.manager.pki import deployment
from attestgate.schemas.nginx import NginxConfig
from tests.support.cli.command import NOBODY, Ran

Run = Callable[..., Ran]


@pytest.fixture
def attestgate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`attestgate ARGUMENTS`, by the command's own entry point."""

    def command(*arguments: object, typed: str = "") -> Ran:
        monkeypatch.setattr("sys.argv", ["attestgate", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", StringIO(typed))
        status: object = 0
        try:
            run()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return Ran(int(str(status or 0)), captured.out, captured.err)

    yield command
    structlog.reset_defaults()  # the command logs to this test's standard error


@pytest.fixture(scope="package")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A deployment's keys, and the settings file of every process; nothing of it runs."""
    plan = Plan(tmp_path_factory.mktemp("deployed"))
    deployment.init(
        plan.keys, trust_domain=TRUST_DOMAIN, operator=OPERATOR, policy_author=POLICY_AUTHOR, gateway=GATEWAY
    )
    nginx: NginxConfig = plan.nginx(1)
    plan.write_manager(NOBODY, "http://127.0.0.1:1", "127.0.0.1:1")
    plan.write_gateway(NOBODY, nginx)
    settings = nginx.model_dump(mode="json", exclude_defaults=True)
    plan.settings("nginx").write_text(tomli_w.dumps(settings), encoding="utf-8")
    plan.write_operator(NOBODY)
    plan.write_measured("host")
    plan.write_measured("app", "attestgate.app_agent.examples.flows")
    plan.write_host(NOBODY, "host-1", "machine-a", plan.folder / "list", ["app-1"])
    plan.write_app(NOBODY, "app-1", "host-1", "machine-a", plan.volume("app-1"), plan.folder / "status" / "app-1")
    return plan
