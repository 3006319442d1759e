"""`liquid eval` without a checkpoint: scores of answers and of a judge's marks that are in files already.
Torch-free."""

from __future__ import annotations

from pathlib import Path

from evals.benchmarks.answer_files import match_answers
from evals.benchmarks.question_files import read_benchmark
from evals.benchmarks.scores import answered
from evals.metrics.wise import read_prompts, score
from evals.settings import METRICS, EvalJob
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement
from liquid_train.measurement.provenance import texts_digest


def score_files(config: EvalJob) -> dict[str, Measurement]:
    """The chosen metrics, each from its file (evals.checks sees to it that each has one). Raises UserError
    with counts and names for what is missing, stands twice, or is unknown."""
    return {
        name: score_wise(config) if name == "wise" else score_answers(name, config)
        for name in METRICS
        if name in config.metrics
    }


def score_answers(name: str, config: EvalJob) -> Measurement:
    path = Path(getattr(config.benchmarks, name).predictions)
    if not path.exists():
        raise UserError(
            f"benchmarks.{name}.predictions={path}: no such file or folder; give the answers as the server or "
            "program takes them"
        )
    benchmark = read_benchmark(name, config.benchmarks)
    if not benchmark.labelled:
        raise UserError(
            f"benchmarks.{name}: its files hold no answers to score with; such a split is scored by the server alone"
        )
    matched, given = match_answers(benchmark, path, config.benchmarks)
    return answered(
        matched,
        given,
        config.benchmarks,
        data="images not looked at",
        prompts=texts_digest([item.question for item in matched.items]),
        features="answers from a file",
        files={},
    )


def score_wise(config: EvalJob) -> Measurement:
    return score(read_prompts(config.wise), [Path(path) for path in config.wise.scores], config.wise.max_bad)
