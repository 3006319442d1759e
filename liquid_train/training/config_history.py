"""What was changed in a run's settings on the way, and at which step: config_history.jsonl next to config.yaml, which
holds the newest settings only.

A line for each start with other settings than the one before: {"step", "time", "changes": {key: [before, after]}}, a
float where JSON has one. Step: the last one made under the settings before. Walked through from the end, the changes
lead from config.yaml back to the settings of any step.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from liquid_train.checkpoint.folder import TRAINER
from liquid_train.checkpoint.resume import Changes, config_differences, filled, planned_steps
from liquid_train.config.compose import typed
from liquid_train.config.schema import TrainJob
from liquid_train.errors import UserError
from liquid_train.files import write_synced
from liquid_train.optim.schedule import learning_rate

NAME = "config_history.jsonl"
SHAPE = ("optimizer.lr", "schedule", "train.steps", "train.tokens")  # of the learning rate over the steps


def last_settings(run_dir: Path, checkpoint: Path | None) -> dict[str, Any] | None:
    """Those of the start before: of this run, or else of the run whose checkpoint it branches off; None for none."""
    for file, part in ((run_dir / "config.yaml", None), (checkpoint and checkpoint / TRAINER, "config")):
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None  # JSON is YAML
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
        values = values[part] if part and isinstance(values, dict) else values
        if isinstance(values, dict):
            return values
    return None


def record_changes(run_dir: Path, before: dict[str, Any] | None, config: TrainJob, step: int) -> list[str]:
    """Add a line to the history where the settings are others than `before`. Returns what to tell the user: how the
    learning rate at `step` jumps, if it does."""
    if before is None:
        return []
    now = json.loads(json.dumps(asdict(config)))
    changes = {k: v for k, v in config_differences(filled(before, asdict(TrainJob())), now).items() if k != "run.dir"}
    if not changes:
        return []
    line = json.dumps({"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changes": changes})
    file = run_dir / NAME
    write_synced(file, (file.read_text(encoding="utf-8") if file.exists() else "") + line + "\n")
    return schedule_change(before, config, changes, step)


def schedule_change(before: dict[str, Any], config: TrainJob, changes: Changes, step: int) -> list[str]:
    """A line that gives the learning rate of the next step under the settings before and now, where its shape is
    another."""
    shape = [key for key in changes if key in SHAPE or key.startswith("schedule.")]
    if not shape or step >= planned_steps(config):
        return []
    try:
        old = typed(TrainJob, before)
    except UserError:  # settings of an older version, which no longer exist
        return []
    rates = [
        f"{learning_rate(min(step, planned_steps(c) - 1), planned_steps(c), c.optimizer.lr, c.schedule):.3g}"
        for c in (old, config)
    ]
    return [f"the learning rate of step {step + 1} is {rates[1]}, it was to be {rates[0]} ({', '.join(shape)})"]
