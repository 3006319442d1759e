"""What the scores of several benchmarks need. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from evals.questions.collector import BenchmarkQuestion
from evals.questions.published_rules import ratio
from liquid_train.measurement.intervals import bootstrap, bootstrap_name
from liquid_train.measurement.measurement import Value, bare, share

RESAMPLES, SEED = 1000, 0


def by_group(items: Sequence[BenchmarkQuestion]) -> dict[str, list[int]]:
    """{group: numbers of its items}, in the items' order."""
    groups: dict[str, list[int]] = defaultdict(list)
    for n, item in enumerate(items):
        groups[item.group].append(n)
    return groups


def yes_no_scores(said: np.ndarray, true: np.ndarray) -> dict[str, Value]:
    """vqa_scores.pope_scores with intervals, of one split: whether yes was said and is true, both bool [n]."""

    def f1(picked: np.ndarray) -> float:
        return ratio(2 * float((said & true)[picked].sum()), float(said[picked].sum() + true[picked].sum()))

    everything = np.arange(len(said))
    interval = bootstrap(len(said), f1, seed=SEED, resamples=RESAMPLES)
    return {
        "accuracy": share(said == true),
        "precision": share(true[said]) if said.any() else bare(0.0, 0, "never answered yes"),
        "recall": share(said[true]) if true.any() else bare(0.0, 0, "yes is never right"),
        "f1": Value(f1(everything), len(said), *interval, bootstrap_name(RESAMPLES, SEED)),
        "yes_ratio": share(said),
    }
