"""Which metrics are measured: those that the config names, and of metrics=[auto] those that the data allow.

A name is that of a file in evals/metrics/ or evals/benchmarks/, or the import path of a user's own class. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from evals.benchmarks import BENCHMARKS
from evals.errors import NotMeasurable
from evals.metric import Metric
from evals.metrics import METRICS
from evals.sets import EvalSets
from evals.settings import EvalJob
from liquid_train.config.schema import TrainJob
from liquid_train.errors import UserError
from liquid_train.training.settings import EvalsConfig

AUTO = "auto"


@dataclass(frozen=True)
class Chosen:
    """metrics: in the order of the config. automatic: names of those that only [auto] asks for. left_out: why, by
    name, the data do not allow the others of [auto]."""

    metrics: list[Metric]
    automatic: set[str]
    left_out: dict[str, str]

    @property
    def names(self) -> list[str]:
        return [metric.name for metric in self.metrics]


def metric_names() -> list[str]:
    """Of every metric and benchmark of the package, sorted."""
    return sorted({*METRICS.names(), *BENCHMARKS.names()})


def find_metric(path: str, key: str) -> type[Metric]:
    """A metric's or a benchmark's class by its name or import path. Raises UserError for none."""
    if path in BENCHMARKS.names():
        return BENCHMARKS.find(path, key)
    if "." not in path and path not in METRICS.names():
        own = "or the import path of your own, such as my_module.MyMetric (docs/extending.md)"
        raise UserError(f"{key}: {path}: no such metric; one of {AUTO}, {', '.join(metric_names())}, {own}")
    kind = METRICS.find(path, key)
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise UserError(
            f"{key}: {path} is no subclass of evals.metric.Metric or evals.benchmark.Benchmark (docs/extending.md)"
        )
    return kind


def find_all(paths: list[str], key: str, config: EvalJob | None = None) -> list[Metric]:
    """One of each. Raises UserError for names that are none, or that two of them have."""
    found = [find_metric(path, key)(path.rpartition(".")[2], config) for path in dict.fromkeys(paths)]
    names = [metric.name for metric in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{key}: two metrics of the name {', '.join(twice)}; rename one of the classes")
    return found


def choose(config: EvalJob, sets: EvalSets) -> Chosen:
    """Raises UserError for names that are none, for settings that a named metric lacks, and where nothing is left."""
    named = [name for name in config.metrics if name != AUTO]
    asked = find_all(named, "metrics", config)
    automatic = find_all(METRICS.names(), "metrics", config) if AUTO in config.metrics else []
    automatic = [metric for metric in automatic if metric.by_default and metric.name not in named]
    left_out: dict[str, str] = {}
    for metric in automatic:
        try:
            metric.check()
            metric.applies(sets)
        except NotMeasurable as error:
            left_out[metric.name] = str(error)
    automatic = [metric for metric in automatic if metric.name not in left_out]
    refuse_files(config, asked)
    for metric in asked:
        metric.check()
    metrics = [metric for metric in [*automatic, *asked] if config.images_per_prompt or not metric.draws]
    if not metrics and config.sheet is None:
        raise UserError(nothing(config, left_out))
    return Chosen(metrics, {metric.name for metric in automatic}, left_out)


def refuse_files(config: EvalJob, asked: list[Metric]) -> None:
    """Raises UserError where files of answers are given and a model too."""
    keys = [key for metric in asked if (key := metric.scores_files()) is not None]
    model = f"checkpoint={config.checkpoint}" if config.checkpoint is not None else f"watch={config.watch}"
    if keys:
        raise UserError(f"{', '.join(keys)}: files are scored without a model; leave out these, or {model}")


def nothing(config: EvalJob, left_out: dict[str, str]) -> str:
    """Why no metric is left."""
    if not config.metrics:
        return f"metrics is empty; give one or more of {AUTO}, {', '.join(metric_names())}"
    if not left_out:
        return (
            f"images_per_prompt=0 leaves none of metrics={config.metrics} to measure; give 1 or more, or other metrics"
        )
    remedy = "give shards=SET, prompts=FILE or metrics=[...]; a run trained with data.heldout needs no further key"
    return f"nothing can be measured: {'; '.join(f'{n}: {w}' for n, w in left_out.items())}. {remedy}"


def training_metrics(settings: EvalsConfig) -> list[Metric]:
    """Those of evals.metrics. Raises UserError for names that are none, and for a metric that cannot be measured while
    training."""
    key = "evals.metrics"
    automatic = [metric for metric in find_all(METRICS.names(), key) if metric.while_training]
    named = find_all([name for name in settings.metrics if name != AUTO], key)
    for metric in named:
        if not metric.while_training:
            raise UserError(f"{key}: {metric.name} is not measured while training; liquid eval measures it")
    own = {metric.name for metric in named}
    return [*(m for m in automatic if AUTO in settings.metrics and m.name not in own), *named]


def check_training(config: TrainJob) -> None:
    """Raises UserError for evals.metrics that are none, and for evals.periods of others."""
    settings = config.evals
    if not settings.periods and settings.metrics == [AUTO]:
        return
    names = [metric.name for metric in training_metrics(settings)]
    for name in settings.periods:
        if name not in names:
            raise UserError(f"evals.periods.{name}: no such metric; one of {', '.join(names)}")
