"""Logs: one line each, the session on it, the level as the settings say and changed without a restart."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from attestgate.bus.logs import bind_session, clear_session, reload_level, set_up_logs
from attestgate.compose.local.plan import Plan
from attestgate.schemas.base import Secret
from attestgate.schemas.settings import OperatorFile


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers = list(logging.getLogger().handlers)
    yield
    clear_session()
    set_up_logs()
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_session_is_on_every_line_of_its_task_and_of_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()
    log = structlog.get_logger("test")

    async def one(session: str) -> None:
        bind_session(session)
        await asyncio.sleep(0)
        log.info("a", of=session)
        await asyncio.to_thread(log.info, "in a thread", of=session)
        await asyncio.create_task(asyncio.sleep(0))

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            for session in ("1" * 32, "2" * 32):
                tasks.create_task(one(session))
        log.info("neither")

    asyncio.run(both())
    *theirs, last = lines(capsys)
    assert len(theirs) == 4 and all(line["session"] == line["of"] for line in theirs)
    assert "session" not in last


def test_a_level_leaves_out_what_is_less(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "warning")
    log = structlog.get_logger("test")
    for method in ("debug", "info", "warning", "error"):
        getattr(log, method)(method)
    assert [line["event"] for line in lines(capsys)] == ["warning", "error"]


def test_a_fault_is_one_line_at_any_level(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json", "error")
    try:
        raise ValueError("this\nthat")
    except ValueError:
        structlog.get_logger("test").exception("fault")
    (line,) = lines(capsys)
    assert line["level"] == "error" and "ValueError" in str(line["exception"])


def test_what_a_library_logs_has_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()
    logging.getLogger("some.library").warning("%s happened", "it")
    (line,) = lines(capsys)
    assert (line["event"], line["logger"], line["level"]) == ("it happened", "some.library", "warning")


def test_a_secret_hides_itself(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()
    structlog.get_logger("test").info("key", k=Secret(b"hush-hush"), also=[Secret(b"hush-hush")])
    said = capsys.readouterr().err
    assert "hidden" in said and "hush" not in said


def test_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("console")
    structlog.get_logger("test").info("hello", who="you")
    said = capsys.readouterr().err
    assert "hello" in said and "who=you" in said and not said.startswith("{")


def test_the_level_is_read_again_and_a_broken_file_changes_nothing(
    deployed: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs()
    log, path = structlog.get_logger("test"), tmp_path / "operator.toml"
    good = deployed.settings("operator").read_text(encoding="utf-8")
    path.write_text(good + '\n[log]\nlevel = "debug"\n', encoding="utf-8")
    reload_level(OperatorFile, path)
    log.debug("seen")
    path.write_text(good + '\n[log]\nlevel = "loud"\n', encoding="utf-8")
    reload_level(OperatorFile, path)
    log.debug("seen too")
    told = [line["event"] for line in lines(capsys)]
    assert told == ["log level", "seen", "settings reload failed", "seen too"]


@pytest.mark.parametrize("kind", ["manager", "gateway", "host-1", "app-1"])
@pytest.mark.stack
async def test_a_running_process_takes_sighup_and_goes_on(deployed: Plan, tmp_path: Path, kind: str) -> None:
    """It waits for a bus that is not there: that is long enough to be told."""
    (written,) = deployed.settings("any").parent.glob(f"{kind}@*.toml" if "-" in kind else f"{kind}.toml")
    text = written.read_text(encoding="utf-8")
    path = tmp_path / f"{kind}.toml"
    path.write_text(text, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTED, kind, str(path), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None and process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"running\n"
            path.write_text(text + '\n[log]\nlevel = "warning"\n', encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            line = json.loads(await process.stderr.readline())
            while line["event"] != "log level":
                line = json.loads(await process.stderr.readline())
            assert line["level"] == "warning"
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


STARTED = """
import asyncio, sys
from pathlib import Path
from attestgate.bus.agent.process import agent_main
from attestgate.cli import processes
from attestgate.schemas.settings import AppSettings, GatewaySettings, HostSettings, ManagerSettings

async def run(settings):
    print("running", flush=True)
    await asyncio.Event().wait()

what, path = sys.argv[1:]
if agent := {"host-1": HostSettings, "app-1": AppSettings}.get(what):
    sys.exit(agent_main("agent", agent, run, (), [path]))
kind = {"manager": ManagerSettings, "gateway": GatewaySettings}[what]
processes._serve(kind, what, Path(path), None, run)
"""
