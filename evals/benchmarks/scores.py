"""Scores of answers to published benchmarks with their intervals, and the files that the servers and programs take.
Torch-free."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evals.benchmarks.json_files import named
from evals.benchmarks.published_rules import (
    COGNITION,
    PERCEPTION,
    MMERow,
    gqa_scores,
    label_is_yes,
    mme_reads,
    mme_scores,
    pope_says_yes,
    ratio,
    textvqa_accuracy,
    vqav2_accuracy,
)
from evals.benchmarks.question_files import Benchmark, Item
from evals.settings import BenchmarksConfig
from liquid_train.measurement.intervals import bootstrap, bootstrap_name
from liquid_train.measurement.measurement import Measurement, Value, average, bare, share
from liquid_train.measurement.provenance import Provenance, texts_digest

RESAMPLES, SEED = 1000, 0


def answered(
    benchmark: Benchmark,
    given: Sequence[str],
    config: BenchmarksConfig,
    *,
    data: str,
    files: dict[str, str],
    **provenance: Any,
) -> Measurement:
    """The scores of one answer an item, none where right ones are not published. data: digest of the images, or what
    the answers came from. provenance: its other parts. files: {name: text}, what the measurement leaves next to its
    numbers."""
    values = SCORES[benchmark.name](benchmark.items, given) if benchmark.labelled else {}
    truth = texts_digest(
        [str(part) for item in benchmark.items for part in (item.id, len(item.answers), *item.answers)]
    )
    if benchmark.left_out:
        files = {
            **files,
            f"{benchmark.name}-left_out.json": json.dumps(benchmark.left_out, indent=1, ensure_ascii=False),
        }
    return Measurement(
        values,
        Provenance(n=len(given), data=f"{data} {truth}", **provenance),
        {"files": files},
        warnings_of(benchmark, config),
    )


def warnings_of(benchmark: Benchmark, config: BenchmarksConfig) -> list[str]:
    lines = [f"left out: {reason}: {named(names)}" for reason, names in benchmark.left_out.items()]
    if config.max_questions is not None:
        lines.append(
            f"only the first {len(benchmark.items)} questions (benchmarks.max_questions): not the published score"
        )
    if not benchmark.labelled:
        lines.append("the files hold no answers: no score, only the prediction file for the server")
    if benchmark.name == "mme":
        missing = [name for name in (*PERCEPTION, *COGNITION) if name not in {item.group for item in benchmark.items}]
        lines += [f"no questions of {', '.join(missing)}: sums that need them are not given"] if missing else []
    return lines


def by_group(items: Sequence[Item]) -> dict[str, list[int]]:
    """{group: numbers of its items}, in the items' order."""
    groups: dict[str, list[int]] = defaultdict(list)
    for n, item in enumerate(items):
        groups[item.group].append(n)
    return groups


def vqav2(items: Sequence[Item], given: Sequence[str]) -> dict[str, Value]:
    """vqav2, and by answer type vqav2/yes_no, vqav2/number, vqav2/other."""
    points = np.array([vqav2_accuracy(text, item.answers) for item, text in zip(items, given, strict=True)])
    groups = {
        f"vqav2/{kind.replace('/', '_')}": average(points[numbers])
        for kind, numbers in sorted(by_group(items).items())
        if kind
    }
    return {"vqav2": average(points), **groups}


def textvqa(items: Sequence[Item], given: Sequence[str]) -> dict[str, Value]:
    return {"textvqa": average([textvqa_accuracy(text, item.answers) for item, text in zip(items, given, strict=True)])}


def gqa(items: Sequence[Item], given: Sequence[str]) -> dict[str, Value]:
    """gqa, and by structural type gqa/open (query), gqa/binary (all others)."""
    right = np.array(
        [gqa_scores([text], [item.answers[0]])["accuracy"] == 1 for item, text in zip(items, given, strict=True)]
    )
    is_open = np.array([item.group == "query" for item in items])
    parts = {"gqa/open": right[is_open], "gqa/binary": right[~is_open]}
    typed = all(item.group for item in items)
    return {"gqa": share(right), **{key: share(part) for key, part in parts.items() if typed and len(part)}}


def pope(items: Sequence[Item], given: Sequence[str]) -> dict[str, Value]:
    """pope/SPLIT/{accuracy, precision, recall, f1, yes_ratio}, and pope/accuracy, pope/f1: means over the splits."""
    said = np.array([pope_says_yes(text) for text in given])
    true = np.array([label_is_yes(item.answers[0]) for item in items])
    values: dict[str, Value] = {}
    groups = by_group(items)
    for split, numbers in groups.items():
        values |= {f"pope/{split}/{key}": value for key, value in yes_no_scores(said[numbers], true[numbers]).items()}
    for key in ("accuracy", "f1"):
        values[f"pope/{key}"] = bare(
            float(np.mean([values[f"pope/{split}/{key}"].value for split in groups])), len(items), "a mean over splits"
        )
    return values


def yes_no_scores(said: np.ndarray, true: np.ndarray) -> dict[str, Value]:
    """vqa_scores.pope_scores with intervals, of one split: whether yes was said and is true, both bool [n]."""

    def f1(picked: np.ndarray) -> float:
        return ratio(2 * float((said & true)[picked].sum()), float(said[picked].sum() + true[picked].sum()))

    everything = np.arange(len(said))
    interval = bootstrap(len(said), f1, seed=SEED, resamples=RESAMPLES)
    return {
        "accuracy": share(said == true),
        "precision": share(true[said]) if said.any() else bare(0.0, 0, "never answered yes"),
        "recall": share(said[true]) if true.any() else bare(0.0, 0, "yes is never right"),
        "f1": Value(f1(everything), len(said), *interval, bootstrap_name(RESAMPLES, SEED)),
        "yes_ratio": share(said),
    }


def mme(items: Sequence[Item], given: Sequence[str]) -> dict[str, Value]:
    """Points: mme/SUBTASK of 200 each, mme/perception of 2,000 and mme/cognition of 800 where all their subtasks are
    there."""
    scores = mme_scores(
        [MMERow(item.group, str(item.image), item.answers[0], text) for item, text in zip(items, given, strict=True)]
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


SCORES: dict[str, Callable[[Sequence[Item], Sequence[str]], dict[str, Value]]] = {
    "vqav2": vqav2,
    "textvqa": textvqa,
    "gqa": gqa,
    "pope": pope,
    "mme": mme,
}


def prediction_files(benchmark: Benchmark, given: Sequence[str]) -> dict[str, str]:
    """{file name: content} as the benchmark's server or program reads them: one JSON list (VQAv2, TextVQA: question_id,
    answer; GQA:
    questionId, prediction), JSON lines a split (POPE: question, answer), or a table a subtask (MME: image, question,
    label, answer)."""
    name, items = benchmark.name, benchmark.items
    if name in ("vqav2", "textvqa", "gqa"):
        id_key, answer_key = ("questionId", "prediction") if name == "gqa" else ("question_id", "answer")
        rows = [{id_key: item.id, answer_key: text} for item, text in zip(items, given, strict=True)]
        return {f"{name}.json": json.dumps(rows, ensure_ascii=False)}
    files = {}
    for group, numbers in by_group(items).items():
        if name == "pope":
            lines = [
                json.dumps({"question": items[n].question, "answer": given[n]}, ensure_ascii=False) for n in numbers
            ]
        else:
            lines = [
                "\t".join((items[n].image.name, items[n].question, items[n].answers[0], given[n].replace("\t", " ")))
                for n in numbers
            ]
        files[f"pope-{group}.jsonl" if name == "pope" else f"mme/{group}.txt"] = "\n".join(lines) + "\n"
    return files
