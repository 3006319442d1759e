"""`liquid eval watch=RUN`: a job next to the training that evaluates its checkpoints as they come.

    RUN/checkpoints/step-N, complete and not evaluated -> evals/run.py -> RUN/evals/step-N-NAME.json
                                                                       -> RUN/evals/metrics.jsonl, and W&B

RUN/metrics.jsonl is the training's alone; what reads a run reads both. A line also says of which checkpoint
("checkpoint": sha256 of its COMMIT.json) and for which "metrics", so that a restart knows what is left to do, and a run
that went back is evaluated anew.
"""

from __future__ import annotations

import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evals.chosen import choose
from evals.run import run
from evals.sets import eval_sets
from evals.settings import EvalJob
from liquid_train.checkpoint.folder import COMMIT, committed, problems, step_of
from liquid_train.checkpoint.resume import planned_steps
from liquid_train.config.compose import read_config
from liquid_train.config.schema import TrainJob
from liquid_train.errors import UserError
from liquid_train.files import check_folder, sha256_of, write_synced
from liquid_train.measurement.measurement import file_name
from liquid_train.report.run_reader import json_lines
from liquid_train.training.wandb import WandbRun, logged_name


class WatchStopped(BaseException):
    """SIGTERM or SIGUSR1 (Slurm's warning) came: not an Exception, so that nothing on the way takes it for a
    failure."""


def watch(config: EvalJob) -> None:
    """Until the last planned step is evaluated, or a signal comes. Raises UserError for a folder that is no run, and
    where another process watches it."""
    assert config.watch is not None
    run_dir = Path(config.watch)
    training = read_config(run_dir)
    names = choose(config, eval_sets(config)).names
    with watching(run_dir), signals():
        try:
            board = WandbRun(run_dir, training.tracker.wandb, training.run.name, asdict(config), watching=True)
            try:
                follow(config, run_dir, training, names, board)
            finally:
                board.finish()
        except WatchStopped:
            print("stopped by a signal; the same command goes on from here")


def follow(config: EvalJob, run_dir: Path, training: TrainJob, names: list[str], board: WandbRun) -> None:
    """The oldest that waits first (watch_newest: the newest, and no older one), until the last planned step is done."""
    steps = planned_steps(training)
    waiting: set[int] = set()
    newest: int | None = None  # at the look before
    while True:
        found = {step_of(path): path for path in committed(run_dir)}
        if newest is not None and not config.watch_newest:  # those that came and went since
            waiting |= {step for step in range(0, max(found, default=0), training.checkpoint.every) if step > newest}
        newest = max(found, default=0)
        looked_at = list(found)[-1:] if config.watch_newest else list(found)
        due = [step for step in looked_at if not is_done(run_dir, found[step], names)]
        for step in sorted(waiting - found.keys()):
            print(
                f"step {step}: its checkpoint was removed before it could be evaluated; a larger checkpoint.keep "
                "leaves more time"
            )
        waiting = set(due)
        if due:
            if evaluate_when_there(config, run_dir, found[due[0]], names, board):
                waiting.discard(due[0])
        elif any(step >= steps for step in found):
            print(f"{run_dir}: the last planned step, {steps}, is evaluated")
            return
        else:
            time.sleep(config.watch_seconds)


def evaluate_when_there(config: EvalJob, run_dir: Path, checkpoint: Path, names: list[str], board: WandbRun) -> bool:
    """Whether the checkpoint was there long enough. What goes wrong with one that is there is raised."""
    step = step_of(checkpoint)
    try:
        commit = sha256_of(checkpoint / COMMIT)
        run(replace(config, checkpoint=str(checkpoint), watch=None))
    except Exception:
        if not problems(checkpoint):
            raise
        return False  # told when it is found missing
    evals = run_dir / "evals"
    values: dict[str, Any] = {}
    paths = [evals / file_name(name, step) for name in names]
    for path in (p for p in paths if p.is_file()):  # of metrics=[auto], some may show only then to be impossible
        values |= {
            logged_name(key): value["value"]
            for key, value in json.loads(path.read_text(encoding="utf-8"))["values"].items()
        }
    note(evals / "metrics.jsonl", {"step": step, "checkpoint": commit, "metrics": names, **values})
    board.log(values, step)
    board.log_evaluation(evals, step, evals / "drawn.png")
    return True


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [line for line in json_lines(path) if line is not None and "step" in line] if path.is_file() else []


def is_done(run_dir: Path, checkpoint: Path, names: list[str]) -> bool:
    """Whether all of it was measured on this very checkpoint."""
    step = step_of(checkpoint)
    try:
        commit = sha256_of(checkpoint / COMMIT)
    except FileNotFoundError:  # removed just now
        return False
    done = [
        line.get("metrics", [])
        for line in lines_of(run_dir / "evals" / "metrics.jsonl")
        if line["step"] == step and line.get("checkpoint") == commit
    ]
    return set(names) <= {name for part in done for name in part}


def note(path: Path, line: dict[str, Any]) -> None:
    """Add a line, whole or not at all. Of a checkpoint that differs from that step's earlier one the run went back:
    later lines are dropped."""
    lines = lines_of(path)
    if any(old["step"] == line["step"] and old.get("checkpoint") != line["checkpoint"] for old in lines):
        lines = [old for old in lines if old["step"] < line["step"]]
    write_synced(path, "".join(json.dumps(one) + "\n" for one in [*lines, line]))


@contextmanager
def watching(run_dir: Path) -> Iterator[None]:
    """The exclusive right to write RUN/evals/metrics.jsonl."""
    folder = run_dir / "evals"
    check_folder(folder, f"watch={run_dir}, whose evals/", "evaluate a copy that can be written to")
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"watch={run_dir}: another process watches it already") from error
        yield


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise WatchStopped."""

    def stop(*_: Any) -> None:
        raise WatchStopped

    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
