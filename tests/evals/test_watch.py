"""`liquid eval watch=RUN` next to checkpoints that come one by one, and what W&B is given."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from evals import watch as watching
from liquid_train.checkpoint.folder import COMMIT
from liquid_train.cli import main
from liquid_train.measurement.measurement import Measurement, bare, write_measurement
from liquid_train.measurement.provenance import Provenance
from liquid_train.report import html as report
from liquid_train.report.compare import read_evaluations
from liquid_train.report.run_reader import read_run, series
from liquid_train.training.settings import TrackerConfig, WandbConfig
from liquid_train.training.tracker import Tracker
from liquid_train.training.wandb import WandbRun
from tests.shard_sets import image_set
from tests.tiny_model import save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return image_set(tmp_path_factory.mktemp("sets") / "images", samples=6)


def begin(run: Path, steps: int = 30) -> Path:
    run.mkdir()
    config = {
        "run": {"name": "watched", "dir": str(run)},
        "train": {"steps": steps},
        "checkpoint": {"every": 10},
        "tracker": {"wandb": {"mode": "disabled"}},
    }
    (run / "config.yaml").write_text(json.dumps(config))
    lines = [{"step": n, "tokens": 100 * n, "loss": 1.0, "tokens_per_second": 10.0} for n in range(1, 31)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def checkpoint(run: Path, step: int, model: Path, mark: str = "") -> Path:
    """Complete at once, as training renames it."""
    partial = run / "checkpoints" / f".step-{step:08d}.partial"
    partial.mkdir(parents=True)
    shutil.copytree(model, partial / "model")
    (partial / COMMIT).write_text(json.dumps({"schema": 1, "step": step, "mark": mark, "files": {}}))
    return partial.rename(run / "checkpoints" / f"step-{step:08d}")


def call(run: Path, images: Path, *overrides: str) -> list[str]:
    settings = [
        "metrics=[vqa]",
        "max_images=2",
        "device=cpu",
        "watch_seconds=0.05",
        f"shards={images}",
        "train_shards=null",
    ]
    return ["eval", f"watch={run}", *settings, *overrides]


def noted(run: Path) -> list[int]:
    path = run / "evals" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


def test_checkpoints_are_evaluated_as_they_come_and_a_restart_goes_on(tmp_path, model, images, capsys, monkeypatch):
    run = begin(tmp_path / "run")
    before = (run / "metrics.jsonl").read_bytes()
    checkpoint(run, 10, model)

    def training() -> None:
        for step in (20, 30):
            while noted(run) != list(range(10, step, 10)):
                time.sleep(0.02)
            checkpoint(run, step, model)

    other = threading.Thread(target=training, daemon=True)
    other.start()
    assert main(call(run, images)) == 0
    assert noted(run) == [10, 20, 30] and (run / "metrics.jsonl").read_bytes() == before
    assert {p.name for p in (run / "evals").glob("step-*.json")} == {f"step-000000{n}-vqa.json" for n in (10, 20, 30)}
    found = read_run(run)
    steps, values = series(found.evaluations, "eval/vqa_accuracy")
    assert (
        steps == [10, 20, 30]
        and values[0]
        == json.loads((run / "evals" / "step-00000010-vqa.json").read_text())["values"]["vqa_accuracy"]["value"]
    )
    assert found.step == 30 and not found.notes and read_evaluations(run).values["vqa_accuracy"]["step"] == 30
    report.list_runs(tmp_path, Console(file=(listed := io.StringIO()), width=120))
    assert "run " in listed.getvalue() and "evals" not in listed.getvalue()
    report.write_report(run)
    page = (run / "report.html").read_text()
    assert "Questions answered right" in page and report.report_is_current(run)

    done: list[str] = []
    monkeypatch.setattr(watching, "run", lambda config: done.append(config.checkpoint))
    assert main(call(run, images)) == 0 and not done  # all are done
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    checkpoint(run, 20, model, "the run went back")
    monkeypatch.undo()
    assert main(call(run, images)) == 0 and noted(run) == [10, 20, 30]
    assert not report.report_is_current(run)


def test_what_retention_takes_is_said_and_newest_skips_the_older(tmp_path, model, images, capsys, monkeypatch):
    run = begin(tmp_path / "run", steps=50)
    paths = {step: checkpoint(run, step, model) for step in (10, 20, 30)}
    evaluate = watching.run

    def slowly(config: Any) -> None:
        if config.checkpoint == str(paths[10]):
            shutil.rmtree(paths[20])  # while another is evaluated
        if config.checkpoint == str(paths[30]):
            shutil.rmtree(paths[30])  # while it is evaluated itself
            checkpoint(run, 50, model)  # and 40 came and went
        evaluate(config)

    monkeypatch.setattr(watching, "run", slowly)
    assert main(call(run, images)) == 0
    out = capsys.readouterr().out
    assert noted(run) == [10, 50]
    assert all(f"step {step}: its checkpoint was removed before it could be evaluated" in out for step in (20, 30, 40))
    other = begin(tmp_path / "other")
    for step in (10, 20, 30):
        checkpoint(other, step, model)
    assert main(call(other, images, "watch_newest=true")) == 0 and noted(other) == [30]
    with watching.watching(run):
        code = f"from liquid_train.cli import main; raise SystemExit(main({call(run, images)!r}))"
        twice = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert twice.returncode == 2 and "another process watches it already" in twice.stderr


def test_a_signal_ends_it_cleanly(tmp_path, model, images, capsys):
    run = begin(tmp_path / "run")
    checkpoint(run, 10, model)

    def end() -> None:
        while noted(run) != [10]:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    assert main(call(run, images)) == 0
    assert (
        "stopped by a signal" in capsys.readouterr().out
        and noted(run) == [10]
        and signal.getsignal(signal.SIGTERM) == before
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["checkpoint=x"], "goes without checkpoint=x"), (["watch_seconds=0"], "watch_seconds=0")],
)
def test_what_does_not_go_with_it(tmp_path, images, capsys, overrides, message):
    assert main(call(tmp_path / "none", images, *overrides)) == 2 and message in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path, images, capsys):
    assert main(call(tmp_path / "none", images)) == 2 and "no config.yaml there" in capsys.readouterr().err


def evaluation(run: Path, step: int) -> None:
    values = {"vqa_accuracy": bare(0.5, 8, "of a test"), "right_color": bare(float("nan"), 4, "of a test")}
    write_measurement(run / "evals", "vqa", step, Measurement(values, Provenance(n=8)))
    (run / "samples").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), step, dtype=np.uint8)).save(run / "samples" / f"step-{step:08d}.png")


def test_wandb_gets_the_table_and_the_images(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = Tracker(tmp_path, TrackerConfig(progress=False), name="a/b", settings={"x": 1}, first_step=0, steps=2)
    tracker.write({"step": 1, "loss": 2.0})
    evaluation(tmp_path, 1)
    tracker.write_evaluation({"step": 1, "eval/vqa_accuracy": 0.5})
    board = WandbRun(tmp_path, WandbConfig(), "a/b", {}, watching=True)
    board.log({"eval/vqa_accuracy": 0.5}, 1)
    board.log_evaluation(tmp_path / "evals", 1, tmp_path / "none.png")
    board.finish()
    tracker.close()
    assert "W&B takes no more metrics" not in caplog.text
    tables = [
        json.loads(path.read_text())
        for path in (tmp_path / "wandb").glob("offline-run-*/files/media/table/eval/*.json")
    ]
    assert len(tables) == 2 and tables[0]["columns"] == ["metric", "value", "low", "high", "n"]
    assert (
        tables[0]["data"]
        == tables[1]["data"]
        == [["eval/vqa_accuracy", 0.5, None, None, 8], ["eval/right_color", None, None, None, 4]]
    )
    (pixels,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png")
    with Image.open(pixels) as image:
        assert image.size == (8, 8) and np.asarray(image)[0, 0].tolist() == [1, 1, 1]


def test_a_failing_wandb_ends_nothing(tmp_path, monkeypatch, capsys):
    def broken(**_: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("wandb.init", broken)
    tracker = Tracker(tmp_path, TrackerConfig(progress=False), name="x", settings={}, first_step=0, steps=1)
    evaluation(tmp_path, 1)
    tracker.write_evaluation({"step": 1, "eval/vqa_accuracy": 0.5})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "eval/vqa_accuracy": 0.5}\n'
    assert capsys.readouterr().err.count("W&B takes no more metrics (RuntimeError: no network)") == 1
