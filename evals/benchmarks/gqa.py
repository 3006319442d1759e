"""GQA (Hudson and Manning 2019).

questions  {ID: {"imageId", "question", "answer", "types": {"structural"}}}
images     IMAGE_ID.jpg
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.json_files import read_object
from evals.questions.collector import BenchmarkQuestion, Collector, add_labelled, texts
from evals.questions.published_rules import gqa_scores
from liquid_train.measurement.measurement import Value, share


@BENCHMARKS.register("gqa")
class GQA(Benchmark):
    """One answer a question."""

    id_key, answer_key = "questionId", "prediction"

    def read_questions(self) -> Collector:
        questions = self.path("questions")
        collector = Collector(self.images())
        rows = []
        for id, row in read_object(questions).items():
            if not isinstance(row, dict):
                collector.drop("entries that are no objects", id)
                continue
            kind = row["types"].get("structural", "") if isinstance(row.get("types"), dict) else ""
            rows.append((id, row.get("imageId"), row.get("question"), texts([row.get("answer")]), str(kind)))
        add_labelled(collector, rows)
        return collector

    def scores(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, Value]:
        """gqa, and by structural type gqa/open (query), gqa/binary (all others)."""
        right = np.array(
            [gqa_scores([text], [item.answers[0]])["accuracy"] == 1 for item, text in zip(items, given, strict=True)]
        )
        is_open = np.array([item.group == "query" for item in items])
        parts = {"gqa/open": right[is_open], "gqa/binary": right[~is_open]}
        typed = all(item.group for item in items)
        return {"gqa": share(right), **{key: share(part) for key, part in parts.items() if typed and len(part)}}
