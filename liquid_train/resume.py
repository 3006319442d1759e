"""Which checkpoint a run goes on from, and whether it may: the rules of checkpoint.resume, free of torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liquid_train.checkpoint import committed, problems, step_of
from liquid_train.config import TrainJob, package_path
from liquid_train.data.shards import ShardSet

# A checkpoint trained under another value of these cannot be continued: weights, ids or the order of data would not fit.
FIXED = ("seed", "backbone", "vq", "data.sources", "data.seq_len", "data.global_batch", "data.streams", "data.window", "data.unconditional", "data.prompts")
# These belong to the machine or the occasion, not to the run: a change is not worth a word.
FREE = ("run", "launch", "tracker", "checkpoint", "evals", "data.workers", "data.heldout", "train.micro_batch", "train.batch_digest", "parallel")


def find_checkpoint(config: TrainJob) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start. ValueError when checkpoint.resume names none."""
    if config.checkpoint.resume == "none":
        return None
    if config.checkpoint.resume == "auto":
        complete = committed(config.run.dir)
        return complete[-1] if complete else None
    path = Path(config.checkpoint.resume)
    wrong = problems(path) if path.is_dir() else ["no such folder"]
    if wrong:
        raise ValueError(f"checkpoint.resume={path}: not a complete checkpoint ({wrong[0]}); give auto, none or a checkpoints/step-NNNNNNNN folder")
    return path


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*old, *new}):
            found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return {} if old == new else {prefix: (old, new)}


def check_config(checkpoint: Path, config: TrainJob) -> list[str]:
    """Lines that tell what changed since the checkpoint; ValueError where it cannot be continued under this config."""
    trained = json.loads((checkpoint / "trainer.json").read_text())["config"]
    changed = {k: v for k, v in differences(trained, json.loads(json.dumps(asdict(config)))).items() if not _under(k, FREE)}
    fatal = [f"{k}: {old} -> {new}" for k, (old, new) in changed.items() if _under(k, FIXED)]
    if fatal:
        raise ValueError(
            f"{checkpoint} was trained under another config ({'; '.join(fatal)}); "
            "give those values back, choose another run.dir, or start over with checkpoint.resume=none"
        )
    return [f"{k}: {old} -> {new}" for k, (old, new) in changed.items()]


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == p or key.startswith(p + ".") for p in prefixes)


def planned_steps(config: TrainJob) -> int:
    """train.steps, or as many steps as train.tokens need (rounded up)."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.tokens is not None  # check_train
    return -(-config.train.tokens // (config.data.global_batch * config.data.seq_len))


def is_complete(config: TrainJob) -> bool:
    """True when the run's newest checkpoint is that of the last planned step, under this config, and its content is as recorded."""
    if config.checkpoint.resume != "auto":
        return False
    newest = find_checkpoint(config)
    if newest is None:
        return False
    changes = check_config(newest, config)
    return step_of(newest) >= planned_steps(config) and not changes and not problems(newest, hashes=True)


def check_inputs(config: TrainJob) -> None:
    """Everything that can be said without torch before ranks are started: shard folders, VQ files, the checkpoint to resume."""
    for group, sources in (("sources", config.data.sources), ("heldout", config.data.heldout)):
        for name, source in sources.items():
            try:
                ShardSet(source.path).check_files()
            except ValueError as error:
                raise ValueError(f"data.{group}.{name}.path={source.path}: {error}") from error
    for key, path in (("vq.config", config.vq.config), ("vq.checkpoint", config.vq.checkpoint)):
        if not package_path(path).is_file():
            raise ValueError(f"{key}={path}: no such file")
    found = find_checkpoint(config)
    if found:
        check_config(found, config)
