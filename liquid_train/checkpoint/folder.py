"""Checkpoint folders: found, committed atomically, kept or removed. What is inside them is written by state.py.

A checkpoint is written as checkpoints/.step-N.partial, its COMMIT.json (sizes and hashes of every file) last; then the
folder is renamed to step-N. Readers ignore a folder without a valid COMMIT.json. Neither torch nor transformers is
imported.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from liquid_train.errors import UserError
from liquid_train.files import COMMIT as COMMIT
from liquid_train.files import read_json, sha256_of, sync, write_synced

SCHEMA = 1
TRAINER = "trainer.json"  # how far the run has come, and its config
SCORES = "scores.json"  # checkpoints/scores.json: {"metric", "best_is", "scores": {step: value}}
BEST = "best"
SUPERSEDED = "superseded"
_NAME = re.compile(r"step-(\d{8,})$")


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    found = _NAME.search(checkpoint.name)
    if not found:
        raise UserError(f"{checkpoint}: not a checkpoint folder (step-NNNNNNNN)")
    return int(found.group(1))


def committed(run_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (Path(run_dir) / "checkpoints").glob("step-*") if _NAME.search(p.name)]
    return sorted((p for p in folders if not problems(p)), key=step_of)


def read_commit(checkpoint: Path) -> dict[str, Any]:
    """What COMMIT.json holds. OSError where there is none that can be read, UserError where it is none of ours."""
    content = read_json(checkpoint / COMMIT)
    if not (isinstance(content, dict) and "schema" in content and isinstance(content.get("files"), dict)):
        raise UserError(f"{checkpoint / COMMIT}: not what liquid train writes")
    return content


def problems(checkpoint: Path, *, hashes: bool = False) -> list[str]:
    """What is wrong with a checkpoint, by the sizes of its files, with `hashes` also by their content; empty when it is
    complete."""
    try:
        commit = read_commit(checkpoint)
    except OSError as error:
        return [f"{COMMIT}: {error.strerror}"]
    except UserError as error:
        return [str(error)]
    if commit.get("schema") != SCHEMA:
        return [f"{COMMIT}: schema {commit.get('schema')}, this program reads {SCHEMA}"]
    found = []
    for name, entry in commit["files"].items():
        path = checkpoint / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.stat().st_size != entry["size"]:
            found.append(f"{name}: {path.stat().st_size} bytes instead of {entry['size']}")
        elif hashes and sha256_of(path) != entry["sha256"]:
            found.append(f"{name}: its content changed (sha256)")
    return found


def model_folder(path: str | Path) -> Path:
    """The model/ folder of a run (of its newest complete checkpoint), of a checkpoint, or of RUN/checkpoints/best; a
    folder in Hugging Face format is its own.

    Raises UserError where the path is none of these.
    """
    path = Path(path)
    if path.name == BEST and path.parent.name == "checkpoints":
        found = best(path.parents[1])
        if found is None:
            raise UserError(
                f"checkpoint={path}: no checkpoint there has a score; train with checkpoint.best=METRIC, or name one "
                "of them"
            )
        return found / "model"
    if not path.is_dir():
        raise UserError(
            f"checkpoint={path}: no such folder; give a run, a checkpoint or a folder in Hugging Face format"
        )
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        complete = committed(path)
        if not complete:
            raise UserError(f"checkpoint={path}: this run has no complete checkpoint yet")
        return complete[-1] / "model"
    if (path / "model" / "config.json").is_file():
        wrong = problems(path)
        if wrong:
            raise UserError(f"checkpoint={path}: not a complete checkpoint ({wrong[0]})")
        return path / "model"
    if (path / "config.json").is_file():
        return path
    raise UserError(
        f"checkpoint={path}: neither a run, nor a checkpoint, nor a folder in Hugging Face format (no config.json)"
    )


def begin(run_dir: Path, step: int) -> Path:
    """An empty folder to write checkpoint `step` into. What killed processes left is removed: unfinished checkpoints,
    and half-deleted ones."""
    folder = run_dir / "checkpoints"
    for left in [
        *folder.glob(".step-*.partial"),
        *(p for p in folder.glob("step-*") if _NAME.search(p.name) and not (p / COMMIT).exists()),
    ]:
        shutil.rmtree(left)
    partial = partial_folder(run_dir, step)
    partial.mkdir(parents=True)
    return partial


def partial_folder(run_dir: Path, step: int) -> Path:
    """Where checkpoint `step` is written until it is complete."""
    return run_dir / "checkpoints" / f".{checkpoint_name(step)}.partial"


def file_records(partial: Path, part: int = 0, parts: int = 1) -> dict[str, dict[str, Any]]:
    """Sync the written files and return their sizes and hashes by name. Each of `parts` processes does the files of its
    `part`."""
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file())[part::parts]:
        sync(path)
        files[str(path.relative_to(partial))] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    return files


def commit(partial: Path, step: int, fingerprints: dict[str, str], files: dict[str, dict[str, Any]]) -> Path:
    """Write COMMIT.json last and give the folder its final name. files: what `file_records` returned, of all parts."""
    ordered = {name: files[name] for name in sorted(files)}
    write_synced(
        partial / COMMIT,
        json.dumps({"schema": SCHEMA, "step": step, "fingerprints": fingerprints, "files": ordered}, indent=1),
    )
    for folder in [p for p in partial.rglob("*") if p.is_dir()] + [partial]:
        sync(folder)
    final = partial.with_name(checkpoint_name(step))
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync(final.parent)
    return final


def abandon(run_dir: Path, step: int) -> str:
    """Remove a checkpoint that could not be written. Returns a phrase for the log: where there is how much room, and
    where a restart would begin."""
    shutil.rmtree(partial_folder(run_dir, step), ignore_errors=True)
    free = shutil.disk_usage(run_dir).free / 2**30
    complete = committed(run_dir)
    start = f"goes on from {complete[-1].name}" if complete else "begins anew, for want of a checkpoint"
    return f"{free:.2f} GiB are free in run.dir={run_dir}: make room there; a restart {start}"


def read_scores(run_dir: str | Path) -> dict[str, Any]:
    """What checkpoints/scores.json holds; {} where there is none."""
    path = Path(run_dir) / "checkpoints" / SCORES
    return read_json(path) if path.is_file() else {}


def note_score(run_dir: Path, step: int, metric: str, best_is: str, value: float) -> None:
    """Record the score of the model of `step`. Scores by another metric, and those of later steps (the run has gone
    back), are dropped."""
    known = read_scores(run_dir)
    same = (known.get("metric"), known.get("best_is")) == (metric, best_is)
    scores = {s: v for s, v in known["scores"].items() if int(s) < step} if same else {}
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    content = {"metric": metric, "best_is": best_is, "scores": {**scores, str(step): value}}
    write_synced(run_dir / "checkpoints" / SCORES, json.dumps(content, indent=1))


def best(run_dir: str | Path) -> Path | None:
    """The complete checkpoint with the best score, the newer of two equal ones; None where none has a score."""
    known = read_scores(run_dir)
    scored = [
        (known["scores"][str(step_of(p))], step_of(p), p)
        for p in committed(run_dir)
        if str(step_of(p)) in known.get("scores", {})
    ]
    sign = -1 if known.get("best_is") == "lowest" else 1
    return max(scored, key=lambda s: (sign * s[0], s[1]))[2] if scored else None


def retain(run_dir: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove all complete checkpoints except the newest `keep`, those of every `keep_every`-th step, and the best.

    COMMIT.json is removed first, so that a kill leaves no half-deleted folder that looks complete.
    """
    kept = best(run_dir)
    for old in committed(run_dir)[:-keep]:
        if old != kept and not (keep_every and step_of(old) % keep_every == 0):
            (old / COMMIT).unlink()
            shutil.rmtree(old)


def set_aside(run_dir: Path, step: int) -> list[Path]:
    """Move complete checkpoints of later steps than `step` to checkpoints/superseded/, because the run has gone back.

    They are not lost, but no resume finds them, and they do not count among the newest. Returns their new paths.
    """
    superseded = run_dir / "checkpoints" / SUPERSEDED
    moved = []
    for old in committed(run_dir):
        if step_of(old) > step:
            superseded.mkdir(exist_ok=True)
            shutil.rmtree(superseded / old.name, ignore_errors=True)
            moved.append(old.rename(superseded / old.name))
    return moved
