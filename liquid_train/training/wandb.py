"""A run in W&B: the numbers of metrics.jsonl under the same names, the table and the generated images of each
evaluation.

The first failure is reported, and the run continues without W&B; metrics.jsonl has all numbers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from liquid_train.training.settings import WandbConfig

log = logging.getLogger(__name__)

COLUMNS: list[str | int] = ["metric", "value", "low", "high", "n"]


class WandbRun:
    """One process's run in W&B. Its id follows from its name, so that a resumed run stays one run. group: joins a
    training run and the evaluation that watches it.

    any_order: steps may come in any order, as they do when a run is watched; then they are logged as `step`, instead of
    W&B's own counter.
    """

    def __init__(
        self,
        folder: Path,
        config: WandbConfig,
        name: str,
        settings: dict[str, Any],
        *,
        group: str,
        any_order: bool = False,
    ) -> None:
        self._any_order = any_order
        self._run: Any = None
        if config.mode != "disabled":
            self._guarded(lambda: self._start(folder, config, name, settings, group))

    def _start(self, folder: Path, config: WandbConfig, name: str, settings: dict[str, Any], group: str) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", mode=cast(Any, config.mode))
        self._run = wandb.init(
            project=config.project,
            name=name,
            id=name.replace("/", "-"),
            group=group.replace("/", "-"),
            resume="allow",
            dir=folder,
            config=settings,
            settings=quiet,
        )
        if self._any_order:
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers, tables or images of one step."""
        if self._run is not None:
            self._guarded(
                lambda: self._run.log({**values, "step": step}) if self._any_order else self._run.log(values, step=step)
            )

    def log_evaluation(self, evals: Path, step: int, grid: Path) -> None:
        """Log the step's measurements in `evals` as the table eval/table, and the image `grid`, if it exists, as
        samples."""
        if self._run is not None:
            self._guarded(lambda: self.log(media(evals, step, grid), step))

    def finish(self) -> None:
        if self._run is not None:
            self._guarded(lambda: self._run.finish())

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # its own process is gone, it cannot log in, or its folder cannot be written
            log.warning(
                f"W&B takes no more metrics ({type(error).__name__}: {error}). It goes on without; metrics.jsonl has "
                "them all."
            )
            self._run = None


def table_rows(evals: Path, step: int) -> list[list[Any]]:
    """[logged name, value, low, high, n] of every number that was measured at a step."""
    rows = []
    for path in sorted(evals.glob(f"step-{step:08d}-*.json")):
        for name, value in json.loads(path.read_text(encoding="utf-8"))["values"].items():
            rows.append([logged_name(name), *(value[str(key)] for key in COLUMNS[1:])])
    return rows


def logged_name(name: str) -> str:
    """The name of a measured number in metrics.jsonl."""
    return name.replace("heldout_", "val/", 1) if name.startswith("heldout_") else f"eval/{name}"


def media(evals: Path, step: int, grid: Path) -> dict[str, Any]:
    import wandb

    rows = table_rows(evals, step)
    found: dict[str, Any] = {"eval/table": wandb.Table(columns=COLUMNS, data=rows)} if rows else {}
    return {**found, "samples": wandb.Image(str(grid))} if grid.is_file() else found
