"""A user's own metric and benchmark: the examples of the docs, saved as files outside the package and used by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.chosen import find_metric, metric_names
from evals.settings import EvalJob
from liquid_train.config.compose import load, to_yaml
from liquid_train.errors import UserError
from liquid_train.report.plots import _evaluations
from liquid_train.report.run_reader import read_run
from tests import benchmark_sets
from tests.commands import liquid
from tests.shard_sets import mixture_overrides
from tests.tiny_model import save

ANIMALS: dict[str, Any] = {"colors": ("spotted", "striped", "plain"), "shapes": ("cat", "dog")}

ROOT = Path(__file__).resolve().parents[2]


def example(name: str, folder: Path) -> Path:
    """A module of docs/extending.md, saved under the name that its first line states."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python\n(# {name}\n.*?)```", text, flags=re.DOTALL)
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(code)
    return path


def liquid_with(own: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return liquid(own, *arguments, own=own)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of step 12 and held-out data."""
    root = tmp_path_factory.mktemp("own")
    config = load("train", ["experiment=quickstart", *mixture_overrides(root, **ANIMALS)])
    checkpoint = root / "run" / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    save(checkpoint / "model")
    (checkpoint / "COMMIT.json").write_text(json.dumps({"schema": 1, "step": 12, "files": {}}))
    (root / "run" / "config.yaml").write_text(to_yaml(config))
    (root / "run" / "metrics.jsonl").write_text("")
    return root / "run"


def values(run_dir: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "evals" / f"step-00000012-{name}.json").read_text())
    return content


def test_a_metric_of_ones_own_is_measured_kept_and_shown_in_the_report(run_dir: Path, tmp_path: Path) -> None:
    module = example("brightness.py", tmp_path / "mine")
    call = ("eval", f"checkpoint={run_dir}", "metrics=[brightness.Brightness]", "device=cpu")
    done = liquid_with(module.parent, *call)
    assert done.returncode == 0, done.stderr
    content = values(run_dir, "Brightness")
    assert 0 < content["values"]["brightness"]["value"] < 1 and content["receipt"]["n"] == 40
    assert "nothing to do" in liquid_with(module.parent, *call).stdout
    module.write_text(module.read_text().replace("while_training = True", "while_training, version = True, 2"))
    assert "nothing to do" not in liquid_with(module.parent, *call).stdout  # its version is part of the key
    line = {"step": 12, "eval/brightness": content["values"]["brightness"]["value"]}
    (run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert [curve.title for curve in _evaluations(read_run(run_dir))] == ["Brightness of the held-out images"]


def test_a_benchmark_of_ones_own_is_asked_and_scored_from_a_file(run_dir: Path, tmp_path: Path) -> None:
    module = example("animals.py", tmp_path / "mine")
    rows = [{"id": n, "image": "cat", "question": f"what animal, {n}?", "answer": "cat"} for n in range(3)]
    (module.parent / "animals.json").write_text(json.dumps({"data": rows}))
    benchmark_sets.image(module.parent / "animals" / "cat.png")
    files = ("own.Animals.questions=animals.json", "own.Animals.images=animals")
    call = ["metrics=[animals.Animals]", "device=cpu"]
    done = liquid_with(module.parent, "eval", f"checkpoint={run_dir}", *call, *files)
    assert done.returncode == 0, done.stderr
    assert values(run_dir, "Animals")["values"]["Animals"]["n"] == 3
    answers = run_dir / "evals" / "predictions" / "step-00000012-Animals.json"
    given = json.loads(answers.read_text())
    assert [row["question_id"] for row in given] == [0, 1, 2]
    (module.parent / "animals.json").write_text(json.dumps({"data": []}))
    done = liquid_with(module.parent, "eval", f"checkpoint={run_dir}", *call, *files)
    assert done.returncode == 2 and "own.Animals: no question is left" in done.stderr
    done = liquid_with(module.parent, "eval", f"checkpoint={run_dir}", *call)
    assert done.returncode == 2 and "own.Animals.images has no value; give own.Animals.images=PATH" in done.stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "metrics: nothing: no such metric; one of auto, captions, clipscore"),
        ("no_such_module.Metric", "metrics=no_such_module.Metric: no module no_such_module"),
        ("json.JSONDecoder", "json.JSONDecoder is no subclass of evals.metric.Metric"),
    ],
)
def test_what_is_no_metric_is_told(path: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find_metric(path, "metrics")


def test_every_metric_is_found_without_torch() -> None:
    """`liquid eval` with nothing to do, and its messages, import all of them."""
    code = (
        "import sys; from evals.chosen import find_all, metric_names; found = find_all(metric_names(), 'metrics'); "
        "assert len(found) > 15; bad = {'torch', 'transformers', 'torchmetrics'} & set(sys.modules); assert not bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_names_are_those_of_the_files() -> None:
    for name in metric_names():
        assert find_metric(name, "metrics")(name, EvalJob()).name == name
