"""What surrounds a single process does it no harm: RANK of another program, a package of the same name as ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from liquid_train.distributed.rank_environment import forget_leftover_ranks
from tests.distributed.running import ENV
from tests.forked import liquid
from tests.shard_sets import mixture_overrides


def test_leftover_ranks_are_ignored_and_reported(tmp_path: Path) -> None:
    arguments = ["experiment=quickstart", *mixture_overrides(tmp_path), "launch.nproc=1", "train.steps=1"]
    left = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    done = liquid("train", *arguments, "evals.every=0", env=left)
    assert done.returncode == 0, done.stderr
    assert "WARNING: RANK=3, WORLD_SIZE=8 in the environment: ignored" in done.stderr
    assert "1 rank(s)" in done.stderr


def test_what_a_launcher_has_set_is_not_leftover(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with monkeypatch.context() as started:
        started.setenv("TORCHELASTIC_RUN_ID", "none")
        assert forget_leftover_ranks(launched=False) is None and forget_leftover_ranks(launched=True) is None
    with monkeypatch.context() as started:
        started.setenv("MASTER_ADDR", "127.0.0.1")
        started.setenv("MASTER_PORT", "29500")
        assert forget_leftover_ranks(launched=True) is None
    line = forget_leftover_ranks(launched=True)
    assert line == "RANK=1, WORLD_SIZE=2 in the environment: ignored (no MASTER_ADDR and MASTER_PORT)"
    assert forget_leftover_ranks(launched=True) is None


@pytest.mark.parametrize("module", ["liquid_train.cli", "liquid_train.train"])
def test_a_package_called_evals_in_the_working_folder_is_not_ours(tmp_path: Path, module: str) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "__init__.py").write_text("raise SystemExit('another package')\n")
    arguments = ["train", "--help", "evals"] if module.endswith("cli") else ["--help", "evals"]
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=tmp_path, env=ENV, capture_output=True)
    assert (done.returncode, b"evals.every" in done.stdout) == (0, True), done.stderr.decode()
