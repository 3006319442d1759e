"""VQAv2 (Goyal et al. 2017).

questions    {"questions": [{"question_id", "image_id", "question"}]}
annotations  {"annotations": [{"question_id", "answer_type", "answers": [{"answer"}]}]}; none of a test split
images       COCO's, found by the number at the end of their name
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.json_files import read_rows
from evals.questions.collector import BenchmarkQuestion, Collector, dicts, id_of, texts
from evals.questions.published_rules import vqav2_accuracy
from evals.questions.scoring import by_group
from liquid_train.measurement.measurement import Value, average


@BENCHMARKS.register("vqav2")
class VQAv2(Benchmark):
    """Ten people's answers a question."""

    paths = ("questions", "annotations", "images")

    def read_questions(self) -> Collector:
        """Without annotations (the test splits) no score is made, only the file for the server."""
        questions = self.path("questions")
        labelled = self.given_paths.get("annotations") is not None
        collector = Collector(self.images(coco_number))
        annotations = read_annotations(self.path("annotations"), collector) if labelled else None
        rows = list(dicts(read_rows(questions, "questions"), collector))
        for row in rows:
            id = id_of(row)
            answers, kind = (annotations or {}).get(id, ((), ""))
            if annotations is not None and not answers:
                collector.drop("questions without answers", id)
            else:
                collector.add(id, row.get("image_id"), row.get("question"), answers, kind)
        for id in (annotations or {}).keys() - {id_of(row) for row in rows}:
            collector.drop("annotations of unknown questions", id)
        return collector

    def scores(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, Value]:
        """vqav2, and by answer type vqav2/yes_no, vqav2/number, vqav2/other."""
        points = np.array([vqav2_accuracy(text, item.answers) for item, text in zip(items, given, strict=True)])
        groups = {
            f"vqav2/{kind.replace('/', '_')}": average(points[numbers])
            for kind, numbers in sorted(by_group(items).items())
            if kind
        }
        return {"vqav2": average(points), **groups}


def read_annotations(path: Path, collector: Collector) -> dict[Any, tuple[tuple[str, ...], str]]:
    """{question_id: (answers, answer type)} of VQAv2."""
    found: dict[Any, tuple[tuple[str, ...], str]] = {}
    for row in dicts(read_rows(path, "annotations"), collector):
        if id_of(row) in found:
            collector.drop("annotations that stand twice", id_of(row))
        else:
            answers = [a.get("answer") if isinstance(a, dict) else None for a in row.get("answers") or []]
            found[id_of(row)] = texts(answers), str(row.get("answer_type", ""))
    return found


def coco_number(path: Path) -> str:
    """COCO_val2014_000000262148.jpg and 000000262148.jpg are both image 262148; any other name stands for itself."""
    number = path.stem.rsplit("_", 1)[-1]
    return str(int(number)) if number.isdecimal() else path.stem
