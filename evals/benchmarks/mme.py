"""MME (Fu et al. 2023): yes or no, two questions an image.

folder       SUBTASK/ with NAME.jpg and NAME.txt, two lines "question<tab>Yes or No", or both in images/ and
             questions_answers_YN/
predictions  a folder of SUBTASK.txt: lines "image<tab>question<tab>label<tab>answer"
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.questions.answer_files import Answer
from evals.questions.collector import BenchmarkQuestion, BenchmarkSet, Collector, images_in
from evals.questions.published_rules import COGNITION, PERCEPTION, MMERow, mme_reads, mme_scores
from evals.questions.scoring import by_group
from liquid_train.errors import UserError
from liquid_train.files import lines_of
from liquid_train.measurement.measurement import Value, average, bare


@BENCHMARKS.register("mme")
class MME(Benchmark):
    """Fourteen subtasks in two groups."""

    paths = ("folder",)

    def read_questions(self) -> Collector:
        folder = self.path("folder")
        subtasks = [name for name in (*PERCEPTION, *COGNITION) if (folder / name).is_dir()]
        if not subtasks:
            raise UserError(f"benchmarks.mme.folder={folder}: none of MME's folders there (existence, count, ...)")
        images: dict[str, Path] = {}
        collector = Collector(images)
        for subtask in subtasks:
            add_subtask(collector, images, folder / subtask, subtask)
        return collector

    def scores(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, Value]:
        """Points: mme/SUBTASK of 200 each, mme/perception of 2,000 and mme/cognition of 800 where all their subtasks
        are there."""
        scores = mme_scores(
            [
                MMERow(item.group, str(item.image), item.answers[0], text)
                for item, text in zip(items, given, strict=True)
            ]
        )
        values: dict[str, Value] = {}
        for subtask, numbers in by_group(items).items():
            images: dict[Path, list[bool]] = defaultdict(list)
            for n in numbers:
                images[items[n].image].append(mme_reads(given[n]) == items[n].answers[0].lower())
            points = average([100 * float(np.mean(right)) + 100 * all(right) for right in images.values()])
            values[f"mme/{subtask}"] = replace(points, value=scores[subtask], n=len(numbers))
        for name, group in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if all(f"mme/{subtask}" in values for subtask in group):
                values[f"mme/{name}"] = bare(
                    scores[name], sum(values[f"mme/{subtask}"].n for subtask in group), "a sum over subtasks"
                )
        return values

    def warnings(self, benchmark: BenchmarkSet) -> list[str]:
        asked = {item.group for item in benchmark.items}
        missing = [name for name in (*PERCEPTION, *COGNITION) if name not in asked]
        told = [f"no questions of {', '.join(missing)}: sums that need them are not given"] if missing else []
        return [*super().warnings(benchmark), *told]

    def prediction_files(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, str]:
        """A table a subtask: image, question, label, answer."""
        files = {}
        for subtask, numbers in by_group(items).items():
            rows = [(items[n].image.name, items[n].question, items[n].answers[0]) for n in numbers]
            lines = ["\t".join((*row, given[n].replace("\t", " "))) for row, n in zip(rows, numbers, strict=True)]
            files[f"mme/{subtask}.txt"] = "\n".join(lines) + "\n"
        return files

    def read_answers(self, path: Path, benchmark: BenchmarkSet, collector: Collector) -> list[Answer]:
        found = []
        for subtask in dict.fromkeys(item.group for item in benchmark.items):
            file = path / f"{subtask}.txt"
            try:
                lines = lines_of(file.read_text(encoding="utf-8")) if file.is_file() else []
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file}: cannot be read ({error}); give the table of the subtask") from error
            for number, line in enumerate(lines, 1):
                parts = line.split("\t")
                if len(parts) == 4:
                    found.append((f"{subtask}/{parts[0]}/{parts[1]}", parts[3]))
                elif line.strip():
                    collector.drop("lines other than image, question, label, answer", f"{subtask}.txt, line {number}")
        return found

    def question_key(self, item: BenchmarkQuestion) -> str:
        return question_key(item)

    def whole(self, items: list[BenchmarkQuestion], collector: Collector) -> list[BenchmarkQuestion]:
        """Half of an image's points are for both answers right, so that one answer alone cannot be scored."""
        count = Counter(item.image for item in items)
        for item in items:
            if count[item.image] == 1:
                collector.drop("answers whose image has no other one", question_key(item))
        return [item for item in items if count[item.image] > 1]


def question_key(item: BenchmarkQuestion) -> str:
    return f"{item.group}/{item.image.name}/{item.question}"


def add_subtask(collector: Collector, known: dict[str, Path], folder: Path, subtask: str) -> None:
    """known: the collector's images, to which the subtask's are added.

    An image counts with both its questions or not at all: half of the points are for both answers right.
    """
    texts_in, images_at = (
        folder / part if (folder / part).is_dir() else folder for part in ("questions_answers_YN", "images")
    )
    images = images_in(images_at)
    files = {path.stem: path for path in sorted(texts_in.glob("*.txt"))}
    for name in sorted(images.keys() - files.keys()):
        collector.drop("images without questions", f"{subtask}/{name}")
    known |= {f"{subtask}/{name}": path for name, path in images.items()}
    for name, path in files.items():
        lines = [line.split("\t") for line in lines_of(path.read_text(encoding="utf-8")) if line.strip()]
        if len(lines) != 2 or any(
            len(line) != 2 or not line[0].strip() or line[1].strip().lower() not in ("yes", "no") for line in lines
        ):
            collector.drop("files that are not two lines of question, tab, Yes or No", f"{subtask}/{path.name}")
            continue
        for number, (question, label) in enumerate(lines, 1):
            collector.add(f"{subtask}/{name}/{number}", f"{subtask}/{name}", question, (label.strip(),), subtask)
