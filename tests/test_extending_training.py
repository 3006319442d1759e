"""docs/extending.md: its task, optimizer and backbone family, from a folder outside the package, through the
commands."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from liquid_train.checkpoint.folder import model_folder
from tests.commands import liquid
from tests.distributed.running import make_data, metrics

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILE = re.compile(r"```\w+\n# (?P<name>[\w/]+\.(?:py|yaml)).*\n(?P<text>(?:.*\n)*?)```")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the files of the page where it says that they are."""
    folder = make_data(tmp_path_factory.mktemp("own"))
    for found in FILE.finditer(PAGE.read_text()):
        path = folder / found["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found["text"])
    return folder


def attempt(root: Path, run: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`liquid train` for two steps on one rank, unless the overrides say otherwise."""
    data = json.loads((root / "overrides.json").read_text())
    usual = ["experiment=quickstart", *data, "evals.every=0", f"run.dir={run}", "train.steps=2", "launch.nproc=1"]
    return liquid(root, "train", *usual, *overrides, own=root)


def train(root: Path, run: str, *overrides: str) -> list[dict[str, Any]]:
    """A run that must succeed: its metrics."""
    done = attempt(root, run, *overrides)
    assert done.returncode == 0, done.stderr
    return metrics(root / run)


def test_the_page_is_short() -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == [
        "A task",
        "A data source",
        "An image tokenizer",
        "A backbone family",
        "An optimizer",
        "A metric",
        "A benchmark",
    ]
    assert max(len(section.splitlines()) for section in sections) < 45


def test_a_task(root: Path) -> None:
    """Its loss is logged and weighed by its name, held-out too, next to the others'; a model of it generates."""
    own = [f"data.{g}.endings.{k}" for g in ("sources", "heldout") for k in ("path=texts", "task=my_task.Endings")]
    lines = train(root, "task", *own, "loss.weight.endings=0", "evals.every=2", "evals.images=1", "evals.vqa_samples=1")
    step = next(line for line in lines if "loss/endings" in line)
    assert step["loss/endings"] > 0 and step["targets_share/endings"] > 0 == step["loss_share/endings"]
    assert sum(value for name, value in step.items() if name.startswith("loss_share/")) == pytest.approx(1)
    (evaluation,) = [line for line in lines if "val/loss/endings" in line]
    assert evaluation["val/loss/endings"] > 0 and evaluation["val/loss/text"] > 0
    told = liquid(
        root, "generate", "checkpoint=task", "task=my_task.Endings", "prompt=document 3: with", "output=out", own=root
    )
    assert told.returncode == 0, told.stderr
    (row,) = [json.loads(line) for line in (root / "out" / "completions.jsonl").read_text().splitlines()]
    assert row["prompt"] == "document 3: with"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.sources.text.task=my_task.Beginnings"], "module my_task has no Beginnings"),
        (["data.sources.text.task=my_optimizer.Lion"], "not a subclass of liquid_train.data.tasks.Task"),
        (["loss.weight.endings=0.5"], "loss.weight.endings: no such task"),
        (["optimizer.kind=my_task.Endings"], "optimizer.kind=my_task.Endings: "),
        (["optimizer.kind=my_optimizer.Lion", "optimizer.options={speed: 3}"], "unexpected keyword argument 'speed'"),
        (["backbone.family=my_optimizer.Lion"], "not a subclass of liquid_train.model.families.Family"),
    ],
)
def test_what_is_none_is_one_line(root: Path, overrides: list[str], says: str) -> None:
    done = attempt(root, "none", *overrides)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_optimizer(root: Path) -> None:
    """Saved and resumed, it goes on to the bit as if it had never stopped; on two ranks it computes the same."""
    own = ["optimizer=lion", "schedule=constant", "train.deterministic=true"]
    whole = train(root, "whole", *own, "train.steps=4")
    config = yaml.safe_load((root / "whole" / "config.yaml").read_text())["optimizer"]
    assert config["kind"] == "my_optimizer.Lion" and config["options"] == {"momentum": 0.95} and config["lr"] == 1e-3
    train(root, "halves", *own)
    halves = train(root, "halves", *own, "train.steps=4")
    assert [(x["loss"], x["grad_norm"]) for x in halves] == [(x["loss"], x["grad_norm"]) for x in whole]
    two = train(root, "two", *own, "train.steps=4", "launch.nproc=2")
    assert [x["loss"] for x in two] == pytest.approx([x["loss"] for x in whole], rel=1e-3)
    refused = attempt(root, "whole", "optimizer=adamw", "train.steps=6")
    assert refused.returncode == 2 and "optimizer.kind: my_optimizer.Lion -> adamw" in refused.stderr, refused.stderr


def test_a_backbone_family(root: Path) -> None:
    """Trained, resumed and generated from in processes of their own, which find it by the checkpoint."""
    own = ["backbone.family=my_family.Wide", "backbone.architecture.model_type=wide_qwen"]
    train(root, "family", *own)
    card = json.loads((model_folder(root / "family") / "liquid.json").read_text())
    assert card["family"] == "my_family.Wide"
    assert json.loads((model_folder(root / "family") / "config.json").read_text())["model_type"] == "wide_qwen"
    assert len(train(root, "family", *own, "train.steps=3")) == 3
    done = liquid(root, "generate", "checkpoint=family", "prompt=a red circle", "output=images", own=root)
    assert done.returncode == 0, done.stderr
    assert (root / "images" / "00000.png").is_file()
