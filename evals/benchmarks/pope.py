"""POPE (Li et al. 2023): is the object there?

questions    a folder of one JSON-lines file a split, coco_pope_SPLIT.json, or one such file: {"question_id", "image",
             "text", "label"}
images       COCO's
predictions  JSON lines {"question", "answer"}, one for each question in their order; or {"question_id", "answer"} in
             any order. A folder of such files by split, *-SPLIT.jsonl or *_SPLIT.json, or the file of one split
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.json_files import read_lines
from evals.questions.answer_files import Answer, pairs
from evals.questions.collector import BenchmarkQuestion, BenchmarkSet, Collector, dicts
from evals.questions.published_rules import label_is_yes, pope_says_yes
from evals.questions.scoring import by_group, yes_no_scores
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Value, bare


@BENCHMARKS.register("pope")
class POPE(Benchmark):
    """Yes or no, in several splits."""

    def read_questions(self) -> Collector:
        questions = self.path("questions")
        files = files_of(questions)
        if not files:
            raise UserError(
                f"benchmarks.pope.questions={questions}: no .json files there; give POPE's coco_pope_SPLIT.json"
            )
        collector = Collector(self.images())
        for path in files:
            split = path.stem.rsplit("_", 1)[-1]
            for row in dicts(read_lines(path), collector):
                id = f"{split}/{row.get('question_id')}"
                label = str(row.get("label", "")).strip().lower()
                if label not in ("yes", "no"):
                    collector.drop("labels other than yes and no", id)
                else:
                    collector.add(id, Path(str(row.get("image"))).stem, row.get("text"), (label,), split)
        return collector

    def scores(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, Value]:
        """pope/SPLIT/{accuracy, precision, recall, f1, yes_ratio}, and their means over the splits pope/accuracy and
        pope/f1."""
        said = np.array([pope_says_yes(text) for text in given])
        true = np.array([label_is_yes(item.answers[0]) for item in items])
        values: dict[str, Value] = {}
        groups = by_group(items)
        for split, numbers in groups.items():
            values |= {
                f"pope/{split}/{key}": value for key, value in yes_no_scores(said[numbers], true[numbers]).items()
            }
        for key in ("accuracy", "f1"):
            values[f"pope/{key}"] = bare(
                float(np.mean([values[f"pope/{split}/{key}"].value for split in groups])),
                len(items),
                "a mean over splits",
            )
        return values

    def prediction_files(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, str]:
        """JSON lines {"question", "answer"}, a file a split."""
        files = {}
        for split, numbers in by_group(items).items():
            rows = [{"question": items[n].question, "answer": given[n]} for n in numbers]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            files[f"pope-{split}.jsonl"] = "\n".join(lines) + "\n"
        return files

    def read_answers(self, path: Path, benchmark: BenchmarkSet, collector: Collector) -> list[Answer]:
        files = files_of(path)
        splits = list(dict.fromkeys(item.group for item in benchmark.items))
        found = []
        for file in files:
            split = file.stem.replace("-", "_").rsplit("_", 1)[-1]
            rows = list(dicts(read_lines(file), collector))
            if split not in splits:
                collector.drop("files of an unknown split", file.name)
            elif any("question_id" in row for row in rows):
                found += pairs(rows, "question_id", "answer", collector, f"{split}/")
            else:
                found += by_place(rows, [item for item in benchmark.items if item.group == split], collector, split)
        return found


def files_of(path: Path) -> list[Path]:
    """The JSON files of a folder, or the one file."""
    return sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]


def by_place(
    rows: list[dict[str, Any]], items: list[BenchmarkQuestion], collector: Collector, split: str
) -> list[Answer]:
    """POPE's own format: line i answers question i; where the text of its question is another one, the answer is to an
    unknown one."""
    found = []
    for place, row in enumerate(rows):
        text = row.get("answer")
        if place >= len(items) or row.get("question") != items[place].question:
            found.append((f"{split}, line {place + 1}", str(text)))
        elif not isinstance(text, str):
            collector.drop("answers without a text", f"{split}, line {place + 1}")
        else:
            found.append((str(items[place].id), text))
    return found
