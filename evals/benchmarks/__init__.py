"""One file a published benchmark of questions about images, named as in metrics=[NAME]: a subclass of
evals.benchmark.Benchmark that registers itself."""

from __future__ import annotations

from evals.benchmark import Benchmark
from liquid_train.registry import Registry

BENCHMARKS: Registry[type[Benchmark]] = Registry("evals.benchmarks", "benchmark")
