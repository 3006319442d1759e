"""Answers that somebody else's model gave, matched to the questions.

A question without exactly one answer is left out with its name, an answer to no question is named: never is something
scored on fewer questions without a word. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from evals.questions.collector import BenchmarkQuestion, BenchmarkSet, Collector, dicts

Answer = tuple[str, str]  # the key of its question, and what was answered


def match_answers(
    benchmark: BenchmarkSet,
    found: list[Answer],
    key: Callable[[BenchmarkQuestion], str],
    whole: Callable[[list[BenchmarkQuestion], Collector], list[BenchmarkQuestion]],
    collector: Collector,
) -> tuple[list[BenchmarkQuestion], list[str]]:
    """(the questions that have one answer, the answers in their order); the others are noted in the collector.

    key: what answers call a question. whole: which of the answered questions can be scored.
    """
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
    items = whole([item for item in benchmark.items if key(item) in answers], collector)
    return items, [answers[key(item)] for item in items]


def pairs(rows: Iterable[Any], id_key: str, answer_key: str, collector: Collector, prefix: str = "") -> list[Answer]:
    found = []
    for row in dicts(rows, collector):
        id, text = row.get(id_key), row.get(answer_key)
        if isinstance(id, (int, str)) and isinstance(text, str):
            found.append((f"{prefix}{id}", text))
        else:
            collector.drop(f"answers without a {id_key} or a text", f"{prefix}{id}")
    return found
