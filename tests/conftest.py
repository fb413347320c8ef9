"""How the whole suite runs: which tests share a worker, in which order they start, and which may start a process."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

ONE_STACK = "tests/story/"
"""Its tests share one running stack, and follow one another on it."""
EACH_ALONE = ("tests/cli/test_demo.py",)
"""Files of long tests that share nothing: each may go to another worker."""
LONGEST = (
    ONE_STACK,
    "tests/cluster/",
    "tests/packaging/",
    "tests/cli/test_demo.py",
    "tests/docs/test_commands.py",
    "tests/cli/test_trouble.py",
    "tests/sessions/test_killed.py",
    "tests/crash/",
    "tests/gateway/",
    "tests/sgx/test_fuzz.py",
    "tests/enclave/",
    "tests/app/",
)
"""What takes longest starts first, so that no worker is left alone with it at the end."""
STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""Audit events of the interpreter (sys.addaudithook) by which a process begins."""

_alone: list[str] = []
"""The test that is running, if it has not the mark `stack`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=rank)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    """What goes to one worker: a file, whose fixtures its tests share."""
    if item.nodeid.startswith(ONE_STACK):
        return ONE_STACK
    return item.nodeid if item.nodeid.startswith(EACH_ALONE) else item.nodeid.split("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test without the mark `stack` must not start a process: `make test-fast` relies on the mark."""
    if item.get_closest_marker("stack") is None:
        _alone.append(item.nodeid)
    try:
        return (yield)
    finally:
        _alone.clear()


def _forbid(event: str, _: object) -> None:
    if event in STARTS and _alone:
        raise RuntimeError(f"{_alone[0]} starts a process: mark it `stack`")


sys.addaudithook(_forbid)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped counts as a failure")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a part of `make test-all` has installed its tool for must have run."""
    told = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.no_skips and told is not None and told.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
