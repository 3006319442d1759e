"""A run in W&B: the numbers of metrics.jsonl under the same names, the table and the generated images of each
evaluation.

The first failure is reported, and the run continues without W&B; metrics.jsonl has all numbers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from liquid_train.files import write_synced
from liquid_train.training.settings import WandbConfig

log = logging.getLogger(__name__)

ID_FILE = "wandb_id"  # in the run's folder
COLUMNS: list[str | int] = ["metric", "value", "low", "high", "n"]


class WandbRun:
    """One process's run in W&B, under the id that is kept in the run's folder: it stays one run when it is resumed or
    moved, and another one of the same name is another.

    watching: it belongs to the evaluation that watches the training; both are in one group. Steps may come in any
    order then, and are logged as `step`, instead of W&B's own counter.
    """

    def __init__(
        self,
        folder: Path,
        config: WandbConfig,
        name: str,
        settings: dict[str, Any],
        *,
        watching: bool = False,
    ) -> None:
        self._any_order = watching
        self._run: Any = None
        if config.mode != "disabled":
            self._guarded(lambda: self._start(folder, config, name, settings))

    def _start(self, folder: Path, config: WandbConfig, name: str, settings: dict[str, Any]) -> None:
        import wandb

        own = run_id(folder, name)
        quiet = wandb.Settings(silent=True, console="off", mode=cast(Any, config.mode))
        self._run = wandb.init(
            project=config.project,
            name=f"{name}-evals" if self._any_order else name,
            id=f"{own}-evals" if self._any_order else own,
            group=own,
            job_type="evaluation" if self._any_order else "training",
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


def run_id(folder: Path, name: str) -> str:
    """The id of the run in a folder, made once and kept in wandb_id; NAME for a run of an older version."""
    path = folder / ID_FILE
    if not path.exists():
        log = folder / "metrics.jsonl"
        plain = name.replace("/", "-")
        made = plain if log.exists() and log.stat().st_size else f"{plain[:110]}-{secrets.token_hex(4)}"
        aside = path.with_name(f".{ID_FILE}.{secrets.token_hex(4)}")
        write_synced(aside, made + "\n")
        with contextlib.suppress(FileExistsError):  # a training and its watching evaluation may begin together
            os.link(aside, path)
        aside.unlink()
    return path.read_text(encoding="utf-8").strip()


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
