"""Questions of published benchmarks, from local files as they are published.

vqav2    questions.json {"questions": [{"question_id", "image_id", "question"}]} and annotations.json {"annotations":
         [{"question_id",
         "answer_type", "answers": [{"answer"}]}]}; images: COCO's, found by the number at the end of their name
textvqa  {"data": [{"question_id", "image_id", "question", "answers"}]}; images: IMAGE_ID.jpg
gqa      {ID: {"imageId", "question", "answer", "types": {"structural"}}}; images: IMAGE_ID.jpg
pope     a folder of one JSON-lines file a split, coco_pope_SPLIT.json, or one such file: {"question_id", "image",
         "text", "label"}
mme      FOLDER/SUBTASK/ with NAME.jpg and NAME.txt, two lines "question<tab>Yes or No", or both in images/ and
         questions_answers_YN/

What cannot be asked or scored is left out under the reason why, with its name: `check_left_out` refuses more than is
allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.benchmarks.json_files import named, read_lines, read_object, read_rows
from evals.benchmarks.published_rules import COGNITION, PERCEPTION
from evals.settings import BENCHMARKS, BenchmarksConfig, QuestionFiles
from liquid_train.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Item:
    """One question. id: as published, for the prediction file. image: its file. answers: right ones, none where they
    are not published. group: what scores are given by besides all of them: VQAv2's answer type, GQA's structural type,
    POPE's split, MME's subtask."""

    id: int | str
    image: Path
    question: str
    answers: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Benchmark:
    """items: in the files' order. left_out: {reason: names}. labelled: whether there are answers to score with."""

    name: str
    items: list[Item]
    left_out: dict[str, list[str]]

    @property
    def labelled(self) -> bool:
        return bool(self.items[0].answers)


@dataclass
class Collector:
    """Takes what can be asked and notes what cannot. images: file by the name that questions call it by; None: they
    are not looked for, since answers are given already."""

    images: dict[str, Path] | None
    items: list[Item] = field(default_factory=list)
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
            self.items.append(Item(id, file, question, answers, group))
        if isinstance(id, (int, str)):
            self.seen.add(id)


def read_benchmark(name: str, config: BenchmarksConfig) -> Benchmark:
    """Raises UserError for files that are missing or of another format, and where more must be left out than
    benchmarks.max_bad allows."""
    collector = READERS[name](config)
    benchmark = Benchmark(name, collector.items, collector.left_out)
    check_left_out(benchmark, config.max_bad)
    return benchmark


def check_left_out(benchmark: Benchmark, max_bad: float) -> None:
    """Raises UserError with counts and names where more than max_bad (a share) is left out, or nothing is left."""
    bad = sum(len(names) for names in benchmark.left_out.values())
    reasons = "; ".join(f"{reason}: {named(names)}" for reason, names in benchmark.left_out.items())
    if not benchmark.items:
        raise UserError(f"benchmarks.{benchmark.name}: no question is left. {reasons}")
    if bad > max_bad * (len(benchmark.items) + bad):
        raise UserError(
            f"benchmarks.{benchmark.name}: {bad} of {len(benchmark.items) + bad} entries cannot be used. {reasons}. "
            f"Mend the files, or allow a larger share with benchmarks.max_bad={max_bad}"
        )


def images_in(folder: str | Path, name: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
    """Image files of a folder by name(file). Raises UserError where there are none, or two have one name."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give the one with the benchmark's images")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGES)
    if not files:
        raise UserError(f"{folder}: no images there ({', '.join(IMAGES)})")
    twice = sorted(key for key, count in Counter(map(name, files)).items() if count > 1)
    if twice:
        raise UserError(f"{folder}: two images of one name: {named(twice)}")
    return {name(path): path for path in files}


def images_of(
    name: str, files: QuestionFiles, key: Callable[[Path], str] = lambda path: path.stem
) -> dict[str, Path] | None:
    """The images of benchmarks.NAME.images; None where it has no value and there is a file of answers."""
    if files.images is None and files.predictions is not None:
        return None
    (images,) = given((f"{name}.images", files.images))
    return images_in(images, key)


def coco_number(path: Path) -> str:
    """COCO_val2014_000000262148.jpg and 000000262148.jpg are both image 262148; any other name stands for itself."""
    number = path.stem.rsplit("_", 1)[-1]
    return str(int(number)) if number.isdecimal() else path.stem


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


def given(*keys: tuple[str, str | None]) -> list[Path]:
    """The files of benchmarks.KEY. Raises UserError for one that has no value."""
    for key, value in keys:
        if value is None:
            raise UserError(f"benchmarks.{key} has no value; give benchmarks.{key}=PATH")
    return [Path(str(value)) for _, value in keys]


def read_vqav2(config: BenchmarksConfig) -> Collector:
    """Without annotations (the test splits) no score is made, only the file for the server."""
    c = config.vqav2
    (questions,) = given(("vqav2.questions", c.questions))
    collector = Collector(images_of("vqav2", c, coco_number))
    annotations = read_annotations(Path(c.annotations), collector) if c.annotations is not None else None
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


def texts(answers: Any) -> tuple[str, ...]:
    """A list of answers; none unless all of them are texts."""
    return tuple(answers) if isinstance(answers, list) and all(isinstance(a, str) for a in answers) else ()


def read_textvqa(config: BenchmarksConfig) -> Collector:
    (questions,) = given(("textvqa.questions", config.textvqa.questions))
    collector = Collector(images_of("textvqa", config.textvqa))
    rows = list(dicts(read_rows(questions, "data"), collector))
    add_labelled(
        collector,
        [(id_of(row), row.get("image_id"), row.get("question"), texts(row.get("answers")), "") for row in rows],
    )
    return collector


def read_gqa(config: BenchmarksConfig) -> Collector:
    (questions,) = given(("gqa.questions", config.gqa.questions))
    collector = Collector(images_of("gqa", config.gqa))
    rows = []
    for id, row in read_object(questions).items():
        if not isinstance(row, dict):
            collector.drop("entries that are no objects", id)
            continue
        kind = row["types"].get("structural", "") if isinstance(row.get("types"), dict) else ""
        rows.append((id, row.get("imageId"), row.get("question"), texts([row.get("answer")]), str(kind)))
    add_labelled(collector, rows)
    return collector


def add_labelled(collector: Collector, rows: list[tuple[Any, Any, Any, tuple[str, ...], str]]) -> None:
    """(id, image, question, answers, group): answers are asked of all entries where one has some; a test split has none
    at all."""
    labelled = any(answers for *_, answers, _ in rows)
    for row in rows:
        if labelled and not row[3]:
            collector.drop("questions without answers", row[0])
        else:
            collector.add(*row)


def read_pope(config: BenchmarksConfig) -> Collector:
    (questions,) = given(("pope.questions", config.pope.questions))
    files = (
        sorted(p for p in questions.iterdir() if p.suffix in (".json", ".jsonl")) if questions.is_dir() else [questions]
    )
    if not files:
        raise UserError(
            f"benchmarks.pope.questions={questions}: no .json files there; give POPE's coco_pope_SPLIT.json"
        )
    collector = Collector(images_of("pope", config.pope))
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


def read_mme(config: BenchmarksConfig) -> Collector:
    (folder,) = given(("mme.folder", config.mme.folder))
    subtasks = [name for name in (*PERCEPTION, *COGNITION) if (folder / name).is_dir()]
    if not subtasks:
        raise UserError(f"benchmarks.mme.folder={folder}: none of MME's folders there (existence, count, ...)")
    images: dict[str, Path] = {}
    collector = Collector(images)
    for subtask in subtasks:
        add_subtask(collector, images, folder / subtask, subtask)
    return collector


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
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(lines) != 2 or any(
            len(line) != 2 or not line[0].strip() or line[1].strip().lower() not in ("yes", "no") for line in lines
        ):
            collector.drop("files that are not two lines of question, tab, Yes or No", f"{subtask}/{path.name}")
            continue
        for number, (question, label) in enumerate(lines, 1):
            collector.add(f"{subtask}/{name}/{number}", f"{subtask}/{name}", question, (label.strip(),), subtask)


READERS: dict[str, Callable[[BenchmarksConfig], Collector]] = {
    "vqav2": read_vqav2,
    "textvqa": read_textvqa,
    "gqa": read_gqa,
    "pope": read_pope,
    "mme": read_mme,
}
assert tuple(READERS) == BENCHMARKS
