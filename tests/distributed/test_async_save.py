"""A checkpoint that is written next to the training holds the state of its own step, not that of a later one."""

from __future__ import annotations

from pathlib import Path

from liquid_train.checkpoint import folder as checkpoint
from tests.distributed.running import make_data, train

STEPS = 6


def contents(run: Path) -> dict[str, dict[str, str]]:
    """{checkpoint: {file: sha256}} of weights and optimizer state, read again from the disk."""
    found = checkpoint.committed(run)
    assert all(checkpoint.problems(p, hashes=True) == [] for p in found)
    commits = {p.name: checkpoint.read_commit(p)["files"] for p in found}
    return {
        name: {f: e["sha256"] for f, e in files.items() if f.endswith((".safetensors", ".distcp"))}
        for name, files in commits.items()
    }


def test_written_beside_the_training_equals_written_in_its_way(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    common = (
        f"train.steps={STEPS}",
        "launch.nproc=2",
        "checkpoint.every=1",
        f"checkpoint.keep={STEPS}",
        "checkpoint.shard_gib=1e-4",
    )
    for name, async_save in (("parallel", "true"), ("waited", "false")):
        train(root, name, *common, f"checkpoint.async_save={async_save}")
    parallel, waited = contents(root / "parallel"), contents(root / "waited")
    assert len(parallel) == STEPS and parallel == waited
    assert len({tuple(sorted(files.items())) for files in parallel.values()}) == STEPS, (
        "every step has weights of its own"
    )
