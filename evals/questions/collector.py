"""Questions of a published benchmark, collected from its files: what cannot be asked or scored is left out under the
reason why, with its name, and `check_left_out` refuses more than is allowed. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.json_files import named
from evals.real_images import IMAGE_SUFFIXES
from liquid_train.errors import UserError


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question. id: as published, for the prediction file. image: its file. answers: right ones, none where they
    are not published. group: what scores are given by besides all of them: VQAv2's answer type, GQA's structural type,
    POPE's split, MME's subtask."""

    id: int | str
    image: Path
    question: str
    answers: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class BenchmarkSet:
    """items: in the files' order. left_out: {reason: names}. labelled: whether there are answers to score with."""

    name: str
    key: str  # of its files in the config
    items: list[BenchmarkQuestion]
    left_out: dict[str, list[str]]

    @property
    def labelled(self) -> bool:
        return bool(self.items[0].answers)


@dataclass
class Collector:
    """Takes what can be asked and notes what cannot. images: file by the name that questions call it by; None: they
    are not looked for, since answers are given already."""

    images: dict[str, Path] | None
    items: list[BenchmarkQuestion] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    seen: set[int | str] = field(default_factory=set)

    def drop(self, reason: str, name: Any) -> None:
        self.left_out.setdefault(reason, []).append(str(name))

    def add(self, id: Any, image: Any, question: Any, answers: tuple[str, ...] = (), group: str = "") -> None:
        if not isinstance(id, (int, str)) or not isinstance(question, str) or not question.strip():
            self.drop("entries without an id or a question", id)
        elif id in self.seen:
            self.drop("question ids that stand twice", id)
        elif self.images is not None and str(image) not in self.images:
            self.drop("missing images", f"{image} of question {id}")
        else:
            file = self.images[str(image)] if self.images is not None else Path(str(image))
            self.items.append(BenchmarkQuestion(id, file, question, answers, group))
        if isinstance(id, (int, str)):
            self.seen.add(id)


def check_left_out(benchmark: BenchmarkSet, max_bad: float) -> None:
    """Raises UserError with counts and names where more than max_bad (a share) is left out, or nothing is left."""
    bad = sum(len(names) for names in benchmark.left_out.values())
    reasons = "; ".join(f"{reason}: {named(names)}" for reason, names in benchmark.left_out.items())
    if not benchmark.items:
        raise UserError(f"{benchmark.key}: no question is left. {reasons}")
    if bad > max_bad * (len(benchmark.items) + bad):
        raise UserError(
            f"{benchmark.key}: {bad} of {len(benchmark.items) + bad} entries cannot be used. {reasons}. "
            f"Fix the files, or allow a larger share with benchmarks.max_bad={max_bad}"
        )


def images_in(folder: str | Path, name: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
    """Image files of a folder by name(file). Raises UserError where there are none, or two have one name."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give the one with the benchmark's images")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{folder}: no images there ({', '.join(IMAGE_SUFFIXES)})")
    twice = sorted(key for key, count in Counter(map(name, files)).items() if count > 1)
    if twice:
        raise UserError(f"{folder}: two images of one name: {named(twice)}")
    return {name(path): path for path in files}


def dicts(rows: Iterable[Any], collector: Collector) -> Iterable[dict[str, Any]]:
    """Entries that are objects; others are noted by their place."""
    for place, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield row
        else:
            collector.drop("entries that are no objects", f"entry {place}")


def id_of(row: dict[str, Any]) -> int | str | None:
    """question_id; None where there is none, or it is no number or text."""
    id = row.get("question_id")
    return id if isinstance(id, (int, str)) else None


def texts(answers: Any) -> tuple[str, ...]:
    """A list of answers; none unless all of them are texts."""
    return tuple(answers) if isinstance(answers, list) and all(isinstance(a, str) for a in answers) else ()


def add_labelled(collector: Collector, rows: list[tuple[Any, Any, Any, tuple[str, ...], str]]) -> None:
    """(id, image, question, answers, group): answers are asked of all entries where one has some; a test split has none
    at all."""
    labelled = any(answers for *_, answers, _ in rows)
    for row in rows:
        if labelled and not row[3]:
            collector.drop("questions without answers", row[0])
        else:
            collector.add(*row)
