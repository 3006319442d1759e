"""Options that are said to work together: every pair of their values in one of these trainings, with equal losses."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from tests.distributed import layouts
from tests.distributed.running import make_data
from tests.distributed.test_layouts import overrides
from tests.forked import run_ranks

OPTIONS: dict[str, list[list[str]]] = {
    "mesh": [[], ["parallel.replicate=2"], ["parallel.tensor=2"], ["parallel.tensor=2", "parallel.replicate=2"]],
    "checkpoint": [[f"parallel.activation_checkpoint={kind}"] for kind in ("none", "selective", "full")],
    "compile": [[], ["parallel.compile=true"]],
    "precision": [["parallel.precision=fp32"], ["parallel.precision=bf16"]],
    "offload": [[], ["parallel.cpu_offload=true"]],
    "sequence": [["parallel.sequence=true"], ["parallel.sequence=false"]],
    "batch": [["train.micro_batch=4"], ["train.micro_batch=1"]],
    "family": [["qwen2"], ["llama"], ["gemma2"], ["qwen3"]],
}
RANKS, STEPS = 4, 2


def pairwise(sizes: list[int], seed: int = 0) -> list[tuple[int, ...]]:
    """A few choices of one value each that contain every pair of values of two options: greedily the best of many."""
    dice = random.Random(seed)
    columns = list(itertools.combinations(range(len(sizes)), 2))
    missing = {(a, b, i, j) for a, b in columns for i in range(sizes[a]) for j in range(sizes[b])}
    chosen = []
    while missing:
        candidates = [tuple(map(dice.randrange, sizes)) for _ in range(300)]
        best = max(candidates, key=lambda c: sum((a, b, c[a], c[b]) in missing for a, b in columns))
        missing -= {(a, b, best[a], best[b]) for a, b in columns}
        chosen.append(best)
    return chosen


CHOICES = pairwise([len(values) for values in OPTIONS.values()])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("together"))


def losses(root: Path, name: str, ranks: int, family: str, more: list[str]) -> list[list[float]]:
    todo, result = root / f"{name}.json", root / f"{name}-result.json"
    own = overrides(root, name, family, *more, f"train.steps={STEPS}")
    todo.write_text(json.dumps([{"name": name, "overrides": own}]))
    run_ranks(layouts.main, (todo, result), ranks)
    found: list[list[float]] = json.loads(result.read_text())[name]
    return found


@pytest.fixture(scope="module")
def reference(root: Path) -> dict[str, list[list[float]]]:
    """One rank, none of the options."""
    return {family: losses(root, f"one-{family}", 1, family, []) for (family,) in OPTIONS["family"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_options_together(root: Path, reference: dict[str, list[list[float]]], number: int) -> None:
    values = {name: OPTIONS[name][i] for name, i in zip(OPTIONS, CHOICES[number], strict=True)}
    (family,) = values.pop("family")
    more = [override for chosen in values.values() for override in chosen]
    found = losses(root, f"run-{number}", RANKS, family, more)
    exact = "parallel.precision=fp32" in more
    for (loss, norm), (wanted_loss, wanted_norm) in zip(found, reference[family], strict=True):
        assert loss == pytest.approx(wanted_loss, rel=1e-5 if exact else 5e-3), (family, more)
        assert norm == pytest.approx(wanted_norm, rel=1e-4 if exact else 5e-2), (family, more)
