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
    "tests/checkpoint/test_carried_vq.py",
    "tests/checkpoint/test_older_run.py",
    "tests/config/test_overrides.py::test_text_is_taken_as_it_stands_and_survives_a_runs_config",
    "tests/config/test_overrides.py::test_torchrun_takes_what_liquid_train_takes",
    "tests/data/test_data_properties.py",
    "tests/data/test_index_builder.py::test_index_is_the_writers_own_and_is_kept",
    "tests/data/test_multiratio.py",
    "tests/data/test_remote_shards.py",
    "tests/data_prep/test_packed_sources.py::test_a_damaged_archive_is_told",
    "tests/data_prep/test_tokenize.py",
    "tests/data_prep/test_reconstruction.py",
    "tests/data_prep/test_tokenize_identity.py",
    "tests/data_prep/test_tokenize_parts.py",
    "tests/data_prep/test_tokenize_remote.py",
    "tests/data_prep/test_data_tools.py",
    "tests/distributed/",
    "tests/evals/test_answer_files.py",
    "tests/evals/test_image_metrics.py",
    "tests/evals/test_language.py",
    "tests/evals/test_own_",
    "tests/evals/test_run.py",
    "tests/evals/test_text_image_scores.py",
    "tests/evals/test_watch.py",
    "tests/generate/test_fused_decode.py",
    "tests/generate/test_image_sampler.py",
    "tests/image_tokenizer/test_taming.py",
    "tests/model/test_architecture.py::test_what_does_not_come_out_right_is_trained_on_request_only",
    "tests/model/test_backbones.py",
    "tests/model/test_proof.py",
    "tests/model/test_router_balance.py",
    "tests/report/test_html.py",
    "tests/scaling/test_planner.py",
    "tests/serve/",
    "tests/training/test_config_history.py",
    "tests/training/test_deadline.py",
    "tests/training/test_evaluation_memory.py",
    "tests/training/test_finite.py",
    "tests/training/test_host_waits.py",
    "tests/test_benchmarks.py",
    "tests/test_cli.py::test_shards_of_another_vq",
    "tests/test_errors.py",
    "tests/test_extending",
    "tests/test_packaging.py",
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
