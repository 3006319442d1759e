"""Fixtures that several files of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquid_train import logs
from tests.data.test_shards import make_set


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
