"""Fixtures that several files of tests share, and which tests take long."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquid_train import logs
from tests.data.test_shards import make_set

# Beginnings of the names of tests that take more than a second or so, because they train, start processes, or measure a
# whole model: `make test-fast` leaves them out, and what they cover is not counted (counting costs a third of their
# time).
LONG = (
    "tests/distributed/",
    "tests/data_prep/test_tokenize_parts.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker(pytest.mark.long)
            if config.pluginmanager.hasplugin("pytest_cov"):
                item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session", autouse=True)
def messages_on_stderr() -> None:
    """As at the start of every command, for tests that call a job's functions."""
    logs.set_up()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local shard set of three tars; tests copy it before they change anything."""
    path = tmp_path_factory.mktemp("sets") / "set"
    make_set(path)
    return path
