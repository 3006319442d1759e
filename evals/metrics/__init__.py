"""One file a metric, named as in metrics=[NAME]: a subclass of evals.metric.Metric that registers itself."""

from __future__ import annotations

from evals.metric import Metric
from liquid_train.registry import Registry

METRICS: Registry[type[Metric]] = Registry("evals.metrics", "metric")
