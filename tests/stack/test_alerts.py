"""Prometheus with the configuration and the alert rules of compose/prometheus, by promtool and on a running stack."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.stack.containers import ROOT, Containers

CONFIG = ROOT / "compose" / "prometheus"
CASES = Path(__file__).with_name("alerts.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", str(CONFIG / "prometheus.yaml")),
        ("check", "rules", "--lint-fatal", str(CONFIG / "alerts.yaml")),
        ("test", "rules", str(CASES)),
    ],
    ids=["config", "rules", "alerts"],
)
@pytest.mark.stack
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: make test-prometheus gets it")
    ran = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (CONFIG / "alerts.yaml").read_text(encoding="utf-8")))
    cases = CASES.read_text(encoding="utf-8")
    fires = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:", cases))
    silent = set(re.findall(r"\{alertname: (\w+), eval_time: \w+\}", cases))
    assert len(alerts) > 8
    assert fires == silent == alerts


# On a running stack


def firing(stack: Containers) -> set[str]:
    """The alerts that fire now."""
    found = stack.prometheus("alerts") or {"alerts": []}
    return {alert["labels"]["alertname"] for alert in found["alerts"] if alert["state"] == "firing"}


def rules(stack: Containers) -> list[dict[str, Any]]:
    """Every rule as Prometheus has last evaluated it; none until it has."""
    found = stack.prometheus("rules") or {"groups": []}
    listed = [rule for group in found["groups"] for rule in group["rules"]]
    return listed if all(rule["health"] != "unknown" for rule in listed) else []


def test_every_rule_is_evaluated_on_series_that_there_are(stack: Containers) -> None:
    stack.until_healthy("prometheus")
    stack.until(lambda: rules(stack), "the rules evaluated")
    assert {rule["name"]: rule["lastError"] for rule in rules(stack) if rule["health"] != "ok"} == {}
    named = set(re.findall(r"\battestgate_\w+", (CONFIG / "alerts.yaml").read_text(encoding="utf-8")))
    assert len(named) >= 8

    def missing() -> set[str]:
        return {name for name in named if not stack.prometheus(f"query?query={name}")["result"]}

    stack.until(lambda: not missing(), "a series of every metric in the rules")
    stack.until(lambda: firing(stack) == set(), "no alert: what was down while the stack came up is over")


def test_the_alerts_of_a_host_that_drifts_and_of_a_gateway_without_its_nginx_fire(stack: Containers) -> None:
    stack.drift()
    stack.done("stop", "nginx")
    try:
        stack.until(lambda: {"HostNotTrusted", "GatewayDisagrees"} <= firing(stack), "both alerts")
    finally:
        stack.done("start", "nginx")
        stack.reboot_clean()
    stack.until(lambda: "GatewayDisagrees" not in firing(stack), "the alert of the gateway over")


def test_the_alert_of_no_manager_fires(stack: Containers) -> None:
    stack.done("stop", "manager")
    try:
        stack.until(lambda: "NoManager" in firing(stack), "the alert", within_s=90)
    finally:
        stack.done("start", "manager")
    stack.until(lambda: "NoManager" not in firing(stack), "the alert over", within_s=90)
    stack.until_healthy("host-1", "app-1", "app-2")
