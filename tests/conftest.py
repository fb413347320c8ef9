"""How the whole suite runs: which tests share a worker, in which order they start, and which may start a process."""

from __future__ import annotations

import sys
from collections.abc import Generator

import hypothesis
import pytest

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

ONE_STACK = "tests/story/"
"""Its tests share one running stack, and follow one another on it."""
STACKS = (
    "tests/cluster/",
    "tests/packaging/",
    "tests/cli/test_demo.py",
    "tests/docs/test_commands.py",
    "tests/crash/",
    "tests/app/",
    "tests/enclave/test_daemon.py",
)
"""Each of them starts a stack, or half of one, again and again. They follow one another: with two or three
at once, two cores are too busy for a process to be up within a lease."""
LONGEST = (
    ONE_STACK,
    *STACKS,
    "tests/gateway/",
    "tests/cli/test_trouble.py",
    "tests/sessions/test_killed.py",
    "tests/sgx/test_fuzz.py",
)
"""What takes longest starts first, so that no worker is left alone with it at the end."""
SLOW = (
    "tests/sessions/test_killed",
    "tests/sessions/test_chaos.py",
    "tests/sessions/test_clocks.py",
    "tests/sessions/test_rollback.py",
    "tests/sessions/test_bus_operator.py",
    "tests/floors/",
    "tests/sgx/test_fuzz.py",
    "tests/protocol/test_properties.py",
    "tests/cli/test_trouble.py",
    "tests/tpm/test_sessions.py",
    "tests/docs/",
    "tests/stack/",
)
"""Exhaustive or generated, and seconds long without starting a process: `make test-fast` leaves them out too."""
STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""Audit events of the interpreter (sys.addaudithook) by which a process begins."""

_started: list[str] = []
"""By what the phase of a test that is running now has started processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=rank)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def _group(item: pytest.Item) -> str:
    """What goes to one worker: a file, whose fixtures its tests share; the story; what starts stacks."""
    if item.nodeid.startswith(ONE_STACK):
        return ONE_STACK
    return "stacks" if item.nodeid.startswith(STACKS) else item.nodeid.split("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """See _only_if_marked."""
    return (yield from _only_if_marked(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """See _only_if_marked."""
    return (yield from _only_if_marked(item))


def _only_if_marked(item: pytest.Item) -> Generator[None, object, object]:
    """A test without the mark `stack` must not start a process: `make test-fast` relies on the mark.

    It fails afterwards: an error where the process starts could be in a task or a thread that nobody waits for.
    """
    _started.clear()
    result = yield
    if _started and item.get_closest_marker("stack") is None:
        pytest.fail(f"{item.nodeid} starts a process ({_started[0]}): mark it `stack`", pytrace=False)
    return result


def _note(event: str, _: object) -> None:
    if event in STARTS:
        _started.append(event)


sys.addaudithook(_note)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped counts as a failure")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a part of `make test-all` has installed its tool for must have run."""
    told = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.no_skips and told is not None and told.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
