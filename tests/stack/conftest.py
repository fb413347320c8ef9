"""One engine and one stack of containers for all of these tests: `make test-stack`.

The tests run in their order on that stack; each leaves it as it found it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stack.containers import ROOT, WANTED, Containers, base_images, up
from tests.stack.engine import Engine, NoEngine, engine

SECOND = ("../tests/stack/second-host.yaml",)
"""Two more services, for the test of two hosts with one id; not started unless they are asked for."""


@pytest.fixture(scope="package")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with base images, and wheels to build from."""
    if WANTED not in os.environ:
        pytest.skip("takes minutes and a Docker engine: make test-stack")
    if not list((ROOT / "build" / "wheels").glob("attestgate-*.whl")):
        pytest.skip("no wheels in build/: make test-stack makes them")
    try:
        with engine(tmp_path_factory.mktemp("docker")) as found:
            assert found.compose
            if problem := base_images(found):
                pytest.skip(f"no base images: {problem}")
            yield found
    except NoEngine as none:
        pytest.skip(str(none))


@pytest.fixture(scope="package")
def stack(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """The stack; what is left of it at the end is checked."""
    with up(docker, tmp_path_factory.mktemp("run") / "stack", "attestgate-test", SECOND) as containers:
        yield containers
    assert containers.left() == ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses containers starts processes."""
    for item in items:
        if isinstance(item, pytest.Function) and "docker" in item.fixturenames:
            item.add_marker(pytest.mark.stack)
