"""Reading a run folder: what a run has written so far, and its headline numbers.

A reader must cope with a run that was killed in the middle of a line, that has not been evaluated yet, or that is still
being written. So nothing here fails on a damaged file: it is left out, with a sentence in `RunRecord.notes`. Only
a folder that is no run at all raises UserError. Neither torch nor transformers is imported.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from liquid_train.checkpoint.folder import committed
from liquid_train.errors import UserError
from liquid_train.files import read_json
from liquid_train.measurement.families import MetricFamily

Line = dict[str, Any]


@dataclass
class RunRecord:
    """One run folder as it lies on disk. Dictionaries are empty where the file is missing or unreadable."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    train: list[Line] = field(default_factory=list)  # training lines of metrics.jsonl, by step
    evaluations: list[Line] = field(default_factory=list)  # evaluation lines, by step
    vqa: dict[str, Any] = field(default_factory=dict)  # evals/vqa.json
    t2i: dict[str, Any] = field(default_factory=dict)  # evals/t2i.json
    families: list[MetricFamily] = field(default_factory=list)  # that metrics of evals/step-*.json state
    changes: list[Line] = field(default_factory=list)  # config_history.jsonl: settings changed on the way
    notes: list[str] = field(default_factory=list)  # what could not be read, one sentence each

    @property
    def name(self) -> str:
        return str(config_value(self.config, "run.name") or self.folder.name)

    @property
    def step(self) -> int:
        """The last optimizer step that was logged; 0 before the first."""
        return int(self.train[-1]["step"]) if self.train else 0

    @property
    def tokens(self) -> int:
        """Tokens trained on up to `step`."""
        return int(last(self.train, "tokens") or 0)

    @property
    def progress(self) -> float | None:
        """Share of the planned length that is done, or None where config.yaml states no length."""
        steps, tokens = config_value(self.config, "train.steps"), config_value(self.config, "train.tokens")
        done, length = (self.step, steps) if steps else (self.tokens, tokens)
        return min(1.0, done / float(length)) if length else None

    @property
    def state(self) -> str:
        """'not started', 'finished' or 'unfinished' (stopped, or still running)."""
        if not self.train:
            return "not started"
        return "finished" if self.progress == 1.0 else "unfinished"

    @property
    def tasks(self) -> list[str]:
        """Every task with a loss, training or held-out, in the order the log names them."""
        keys = [key for line in (*self.train, *self.evaluations) for key in line]
        return list(dict.fromkeys(key.rsplit("/", 1)[1] for key in keys if key.startswith(("loss/", "val/loss/"))))


def config_value(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of a nested dictionary; None where a part is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (null, NaN, text)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def last(lines: list[Line], key: str) -> float | None:
    """The last finite value of a key."""
    return next((value for line in reversed(lines) if (value := number(line.get(key))) is not None), None)


def series(lines: list[Line], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of a key: what a curve draws."""
    points = [(line["step"], value) for line in lines if (value := number(line.get(key))) is not None]
    return [step for step, _ in points], [value for _, value in points]


def is_run(folder: Path) -> bool:
    """evals/ of a run is none, though it has numbers of its own (liquid eval watch=RUN)."""
    own = folder.name != "evals" or not (folder.parent / "config.yaml").is_file()
    return (folder / "config.yaml").is_file() or (own and (folder / "metrics.jsonl").is_file())


def read_run(run_dir: str | Path) -> RunRecord:
    """Read everything but images and weights. Raises UserError for a folder that is no run."""
    folder = Path(run_dir)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    if not is_run(folder):
        raise UserError(f"{folder}: not a run (neither config.yaml nor metrics.jsonl there); give the folder of a run")
    run = RunRecord(folder)
    _read_config(run)
    _read_metrics(run)
    history = folder / "config_history.jsonl"
    run.changes = [line for line in (json_lines(history) if history.is_file() else ()) if line is not None]
    run.environment = json_object(folder / "environment.json", run.notes)
    run.vqa = json_object(folder / "evals" / "vqa.json", run.notes)
    run.t2i = json_object(folder / "evals" / "t2i.json", run.notes)
    run.families = stated_families(folder / "evals")
    return run


def _read_config(run: RunRecord) -> None:
    path = run.folder / "config.yaml"
    if not path.is_file():
        return
    run.config_text = path.read_text(encoding="utf-8", errors="replace")
    try:
        loaded = yaml.safe_load(run.config_text)
    except yaml.YAMLError:
        loaded = None
    if isinstance(loaded, dict):
        run.config = loaded
    else:
        run.notes.append("config.yaml is not readable as yaml, so the planned length of the run is not known.")


def _read_metrics(run: RunRecord) -> None:
    """Those of the training, then those of `liquid eval watch=RUN`: where both have a number of a step, the latter
    counts."""
    paths = [path for path in (run.folder / "metrics.jsonl", run.folder / "evals" / "metrics.jsonl") if path.is_file()]
    train: dict[int, Line] = {}
    evaluations: dict[int, Line] = {}
    bad = 0
    for line in (line for path in paths for line in json_lines(path)):
        step = number(line.get("step")) if line is not None else None
        if line is None or step is None:
            bad += 1
            continue
        line["step"] = int(step)
        if any(key.startswith(("val/", "eval/")) for key in line):
            evaluations.setdefault(int(step), {}).update(line)
        if "loss" in line:
            train[int(step)] = line  # the last one counts, should a step stand twice
    run.train = [train[step] for step in sorted(train)]
    run.evaluations = [evaluations[step] for step in sorted(evaluations)]
    if bad:
        lines = "1 line" if bad == 1 else f"{bad} lines"
        run.notes.append(
            f"{lines} of metrics.jsonl could not be read (cut off when the run was killed, most likely): left out."
        )


def json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each non-empty line as a dictionary, or None where it is not one (a line cut in half)."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                value = None
            yield value if isinstance(value, dict) else None


def json_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object, or {} where there is no file. For one that is not readable, a sentence is added to `notes`."""
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except UserError:
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} could not be read as JSON and was left out.")
    return {}


def stated_families(evals: Path) -> list[MetricFamily]:
    """Of the newest file of each metric. Files that are no measurements state none."""
    newest = {path.stem.split("-", 2)[-1]: path for path in sorted(evals.glob("step-*-*.json"))}
    found = []
    for path in newest.values():
        stated = json_object(path, []).get("families", [])
        found += [
            MetricFamily(**family)
            for family in stated
            if isinstance(family, dict) and {"title", "pattern"} <= set(family)
        ]
    return found


def train_seconds(lines: list[Line]) -> float:
    """Time spent in optimizer steps: each line's tokens since the line before, divided by its tokens per second.

    Evaluation, checkpoints and time between a kill and the next start are not in it.
    """
    seconds, before = 0.0, 0.0
    for line in lines:
        tokens, speed = number(line.get("tokens")), number(line.get("tokens_per_second"))
        if tokens is None:
            continue
        if speed:
            seconds += (tokens - before) / speed
        before = tokens
    return seconds


def vqa_rows(vqa: dict[str, Any]) -> list[dict[str, Any]]:
    """evals/vqa.json as rows {name, count, accuracy, blind, shuffled}: all questions first, then each answer type."""
    if not vqa:
        return []
    blind, shuffled = vqa.get("blind_by_type") or {}, vqa.get("shuffled_by_type") or {}

    def row(name: str, values: dict[str, Any], blind: Any, shuffled: Any) -> dict[str, Any]:
        return {
            "name": name,
            "count": values.get("count"),
            "accuracy": values.get("accuracy"),
            "blind": accuracy_value(blind),
            "shuffled": accuracy_value(shuffled),
        }

    types = [
        row(name, values, blind.get(name), shuffled.get(name)) for name, values in (vqa.get("by_type") or {}).items()
    ]
    return [row("all", vqa, vqa.get("blind_accuracy"), vqa.get("shuffled_accuracy")), *types]


def accuracy_value(value: Any) -> float | None:
    """An accuracy that is stored bare or as {"accuracy": x}."""
    return number(value.get("accuracy")) if isinstance(value, dict) else number(value)


def summary(run_dir: str | Path) -> dict[str, Any]:
    """The headline numbers of a run, as plain values (None or empty where not measured). UserError when it is no run.

    name, folder, state, step, planned_steps, tokens, train_seconds, tokens_per_second (over the whole run), loss,
    heldout {"step", "loss": {task: nats per token}, "accuracy": {task: share}}, vqa {"step", "rows": see vqa_rows},
    t2i (evals/t2i.json without its prompts), checkpoints (names), report (path or None).
    """
    return summarize(read_run(run_dir))


def summarize(run: RunRecord) -> dict[str, Any]:
    """`summary` of a run that was read already."""
    seconds = train_seconds(run.train)
    report = run.folder / "report.html"
    heldout = {
        kind: {t: value for t in run.tasks if (value := last(run.evaluations, f"val/{kind}/{t}")) is not None}
        for kind in ("loss", "accuracy")
    }
    heldout_steps = [line["step"] for line in run.evaluations if any(key.startswith("val/") for key in line)]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": run.state,
        "step": run.step,
        "planned_steps": config_value(run.config, "train.steps"),
        "tokens": run.tokens,
        "train_seconds": seconds,
        "tokens_per_second": run.tokens / seconds if seconds else None,
        "loss": last(run.train, "loss"),
        "heldout": {"step": max(heldout_steps, default=None), **heldout},
        "vqa": {"step": run.vqa.get("step"), "rows": vqa_rows(run.vqa)} if run.vqa else {},
        "t2i": {key: value for key, value in run.t2i.items() if key != "prompts"},
        "checkpoints": [path.name for path in committed(run.folder)],
        "report": str(report) if report.is_file() else None,
    }


def seconds_since_written(run_dir: Path) -> float | None:
    """Age of metrics.jsonl: a running run writes it every few seconds."""
    path = run_dir / "metrics.jsonl"
    return time.time() - path.stat().st_mtime if path.is_file() else None
