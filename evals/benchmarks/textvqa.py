"""TextVQA (Singh et al. 2019).

questions  {"data": [{"question_id", "image_id", "question", "answers"}]}; no answers of a test split
images     IMAGE_ID.jpg
"""

from __future__ import annotations

from collections.abc import Sequence

from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.json_files import read_rows
from evals.questions.collector import BenchmarkQuestion, Collector, add_labelled, dicts, id_of, texts
from evals.questions.published_rules import textvqa_accuracy
from liquid_train.measurement.measurement import Value, average


@BENCHMARKS.register("textvqa")
class TextVQA(Benchmark):
    """Ten people's answers a question."""

    def read_questions(self) -> Collector:
        questions = self.path("questions")
        collector = Collector(self.images())
        rows = list(dicts(read_rows(questions, "data"), collector))
        add_labelled(
            collector,
            [(id_of(row), row.get("image_id"), row.get("question"), texts(row.get("answers")), "") for row in rows],
        )
        return collector

    def scores(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, Value]:
        return {
            "textvqa": average([textvqa_accuracy(text, item.answers) for item, text in zip(items, given, strict=True)])
        }
