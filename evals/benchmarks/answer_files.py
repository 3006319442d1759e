"""Answers that somebody else's model gave, in the files that the benchmarks' servers and programs take, matched to the
questions.

vqav2, textvqa  [{"question_id", "answer"}]
gqa             [{"questionId", "prediction"}]
pope            JSON lines {"question", "answer"}, one for each question in their order; or {"question_id", "answer"} in
                any order.
                A folder of such files by split, *-SPLIT.jsonl or *_SPLIT.json, or the file of one split
mme             a folder of SUBTASK.txt: lines "image<tab>question<tab>label<tab>answer"

A question without exactly one answer is left out with its name, an answer to no question is named: never is something
scored on fewer questions without a word. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from evals.benchmarks.json_files import read_json, read_lines
from evals.benchmarks.question_files import Benchmark, Collector, Item, check_left_out, dicts
from evals.settings import BenchmarksConfig
from liquid_train.errors import UserError

Answer = tuple[str, str]  # the key of its question, and what was answered


def match_answers(benchmark: Benchmark, path: Path, config: BenchmarksConfig) -> tuple[Benchmark, list[str]]:
    """(the questions that have one answer, the answers in their order). Raises UserError for files that are missing or
    of another format, and where more must be left out than benchmarks.max_bad allows."""
    if config.max_questions is not None:
        raise UserError(
            f"benchmarks.max_questions={config.max_questions}: a file of answers is scored whole; leave it out"
        )
    collector = Collector(None, left_out={reason: list(names) for reason, names in benchmark.left_out.items()})
    found = READERS[benchmark.name](path, benchmark, collector)
    key = mme_key if benchmark.name == "mme" else plain_key
    wanted, times = {key(item) for item in benchmark.items}, Counter(name for name, _ in found)
    for name, count in times.items():
        if name not in wanted:
            collector.drop("answers to unknown questions", name)
        elif count > 1:
            collector.drop("questions answered more than once", name)
    for item in benchmark.items:
        if not times[key(item)]:
            collector.drop("questions without an answer in the file", key(item))
    answers = {name: text for name, text in found if times[name] == 1}
    items = [item for item in benchmark.items if key(item) in answers]
    if benchmark.name == "mme":
        items = whole_images(items, collector)
    matched = Benchmark(benchmark.name, items, collector.left_out)
    check_left_out(matched, config.max_bad)
    return matched, [answers[key(item)] for item in items]


def plain_key(item: Item) -> str:
    return str(item.id)


def mme_key(item: Item) -> str:
    return f"{item.group}/{item.image.name}/{item.question}"


def whole_images(items: list[Item], collector: Collector) -> list[Item]:
    """Of MME: half of an image's points are for both answers right, so that one answer alone cannot be scored."""
    count = Counter(item.image for item in items)
    for item in items:
        if count[item.image] == 1:
            collector.drop("answers whose image has no other one", mme_key(item))
    return [item for item in items if count[item.image] > 1]


def read_list(path: Path, benchmark: Benchmark, collector: Collector) -> list[Answer]:
    """VQAv2's, TextVQA's and GQA's one JSON list."""
    id_key, answer_key = ("questionId", "prediction") if benchmark.name == "gqa" else ("question_id", "answer")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a list of {{{id_key!r}, {answer_key!r}}}; give the file that the server takes")
    return pairs(rows, id_key, answer_key, collector)


def pairs(rows: Iterable[Any], id_key: str, answer_key: str, collector: Collector, prefix: str = "") -> list[Answer]:
    found = []
    for row in dicts(rows, collector):
        id, text = row.get(id_key), row.get(answer_key)
        if isinstance(id, (int, str)) and isinstance(text, str):
            found.append((f"{prefix}{id}", text))
        else:
            collector.drop(f"answers without a {id_key} or a text", f"{prefix}{id}")
    return found


def read_pope(path: Path, benchmark: Benchmark, collector: Collector) -> list[Answer]:
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
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


def by_place(rows: list[dict[str, Any]], items: list[Item], collector: Collector, split: str) -> list[Answer]:
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
            found.append((plain_key(items[place]), text))
    return found


def read_mme(path: Path, benchmark: Benchmark, collector: Collector) -> list[Answer]:
    found = []
    for subtask in dict.fromkeys(item.group for item in benchmark.items):
        file = path / f"{subtask}.txt"
        try:
            lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); give the table of the subtask") from error
        for number, line in enumerate(lines, 1):
            parts = line.split("\t")
            if len(parts) == 4:
                found.append((f"{subtask}/{parts[0]}/{parts[1]}", parts[3]))
            elif line.strip():
                collector.drop("lines other than image, question, label, answer", f"{subtask}.txt, line {number}")
    return found


READERS: dict[str, Callable[[Path, Benchmark, Collector], list[Answer]]] = {
    "vqav2": read_list,
    "textvqa": read_list,
    "gqa": read_list,
    "pope": read_pope,
    "mme": read_mme,
}
