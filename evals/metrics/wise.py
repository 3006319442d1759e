"""WISE: images whose prompts need knowledge of the world, marked by a judge (Niu et al. 2025, arXiv 2503.07265).

FOLDER/{cultural_common_sense, spatio-temporal_reasoning, natural_science}.json   or *_verified.json
    [{"prompt_id", "Prompt", "Explanation", "Category", "Subcategory"}]
predictions/STEP-wise/PROMPT_ID.png    what the published scorer reads, and next to them judge.jsonl: what a judge must
                                       know of each
a judge's marks: JSON lines {"prompt_id", "consistency", "realism", "aesthetic_quality"}, each 0 to 2, as the published
scorer writes them

An image's WiScore is (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2; the whole is the mean of the six
categories, each weighted by its share of the 1,000 prompts. What a category is goes by the prompt's number, as in the
published program.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.generated import GeneratedImages
from evals.identity import folder_identity
from evals.inputs import Inputs, JobInputs
from evals.json_files import named, read_lines, read_published
from evals.metric import Metric
from evals.metrics import METRICS
from evals.settings import WISEConfig
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement, ModelHandle, average, bare
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest

FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
MARKS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}  # with their weights
HIGHEST = 2
CATEGORIES = {  # with the last prompt of each; they follow each other from 1 on
    "cultural": 400,
    "time": 567,
    "space": 700,
    "biology": 800,
    "physics": 900,
    "chemistry": 1000,
}


@METRICS.register("wise")
class WISE(Metric):
    """With a model: the images, and no number. With wise.scores: the judge's numbers, and no model."""

    needs = {"wise.prompts": "FOLDER with WISE's three JSON files"}

    def identity(self) -> Any:
        return [asdict(self.job.wise), folder_identity(self.job.wise.prompts)]

    def read(self) -> None:
        self.prompts = read_wise_prompts(self.job.wise)

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        assert isinstance(inputs, JobInputs)
        return images(handle, self.prompts, inputs.one_each([p.text for p in self.prompts.prompts]))

    def scores_files(self) -> str | None:
        return "wise.scores" if self.job.wise.scores else None

    def score(self) -> Measurement:
        config = self.job.wise
        return score_marks(read_wise_prompts(config), [Path(path) for path in config.scores], config.max_bad)


@dataclass(frozen=True)
class WISEPrompt:
    id: int
    text: str
    explanation: str


@dataclass(frozen=True)
class WISEPrompts:
    """In the order of their numbers. left_out: {reason: names}."""

    prompts: list[WISEPrompt]
    left_out: dict[str, list[str]]

    def warnings(self) -> list[str]:
        lines = [f"left out: {reason}: {named(names)}" for reason, names in self.left_out.items()]
        full = max(CATEGORIES.values())
        return lines + (
            [f"{len(self.prompts)} of WISE's {full:,} prompts: not the published score"]
            if len(self.prompts) < full
            else []
        )


def category(id: int) -> str:
    """Of a prompt from 1 to 1000."""
    return next(name for name, last in CATEGORIES.items() if id <= last)


def read_wise_prompts(config: WISEConfig) -> WISEPrompts:
    """Raises UserError for files that are missing or of another format, and with counts and names where more entries
    cannot be used than wise.max_bad allows."""
    if config.prompts is None:
        raise UserError("wise.prompts has no value; give the folder of WISE's three JSON files")
    folder = Path(config.prompts)
    if not folder.is_dir():
        raise UserError(f"wise.prompts={folder}: no such folder; give the one with {', '.join(FILES)} (.json)")
    found: dict[int, WISEPrompt] = {}
    left_out: dict[str, list[str]] = {}
    for stem in FILES:
        path = next(
            (p for p in (folder / f"{stem}.json", folder / f"{stem}_verified.json") if p.is_file()),
            folder / f"{stem}.json",
        )
        rows = read_published(path)
        if not isinstance(rows, list):
            raise UserError(f"{path}: not a list of prompts; give the published file")
        for place, row in enumerate(rows, 1):
            reason, prompt = usable(row, found)
            if prompt is None:
                left_out.setdefault(reason, []).append(f"{path.name}, entry {place}")
            else:
                found[prompt.id] = prompt
    refuse_many("wise.prompts", len(found), left_out, config.max_bad)
    return WISEPrompts([found[id] for id in sorted(found)], left_out)


def usable(row: Any, found: dict[int, WISEPrompt]) -> tuple[str, WISEPrompt | None]:
    """(why not, None), or ("", the prompt)."""
    id, text, explanation = (
        (row.get(key) for key in ("prompt_id", "Prompt", "Explanation"))
        if isinstance(row, dict)
        else (None, None, None)
    )
    if not isinstance(id, int) or not 1 <= id <= max(CATEGORIES.values()):
        return "entries without a prompt_id from 1 to 1000", None
    if id in found:
        return "prompt_ids that stand twice", None
    if not isinstance(text, str) or not text.strip() or not isinstance(explanation, str):
        return "entries without a Prompt or an Explanation", None
    return "", WISEPrompt(id, text, explanation)


def refuse_many(key: str, good: int, left_out: dict[str, list[str]], max_bad: float) -> None:
    bad = sum(map(len, left_out.values()))
    if bad > max_bad * (good + bad) or not good:
        reasons = "; ".join(f"{reason}: {named(names)}" for reason, names in left_out.items())
        raise UserError(
            f"{key}: {bad} of {good + bad} entries cannot be used. {reasons}. Fix the files, or allow a larger "
            f"share with wise.max_bad={max_bad}"
        )


def images(handle: ModelHandle, data: WISEPrompts, generated: GeneratedImages) -> Measurement:
    """No number: the images of the prompts, generated in their order, and the file for a judge. detail: {"image_files",
    "files"} by name."""
    rows = [
        {"prompt_id": p.id, "Prompt": p.text, "Explanation": p.explanation, "image": f"{p.id}.png"}
        for p in data.prompts
    ]
    provenance = Provenance(
        n=len(rows),
        prompts=texts_digest([*generated.prompts, handle.suffix]),
        seeds=seeds_text(generated.seeds),
        sampler=dict(generated.sampler),
        dtype=handle.dtype,
    )
    detail = {
        "image_files": {f"wise/{p.id}.png": pixels for p, pixels in zip(data.prompts, generated.pixels, strict=True)},
        "files": {"wise/judge.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)},
    }
    told = (
        "no score: the images and judge.jsonl are in predictions/; wise.scores=[FILE,...] without a checkpoint "
        "scores a judge's marks"
    )
    return Measurement({}, provenance, detail, [*data.warnings(), told])


def wiscore(marks: Sequence[float]) -> float:
    """consistency, realism, aesthetic quality, each 0 to 2 -> 0 to 1."""
    return sum(weight * mark for weight, mark in zip(MARKS.values(), marks, strict=True)) / HIGHEST


def score_marks(data: WISEPrompts, files: list[Path], max_bad: float) -> Measurement:
    """wise/CATEGORY, and wise where every category has a marked image. Raises UserError with counts and names where
    more prompts have no marks, or more marks no prompt, than max_bad allows."""
    left_out = {reason: list(names) for reason, names in data.left_out.items()}
    known = {p.id for p in data.prompts}
    scores: dict[int, float] = {}
    twice: set[str] = set()
    rows = [(path, place, row) for path in files for place, row in enumerate(read_lines(path), 1)]
    times = Counter(
        row.get("prompt_id") for _, _, row in rows if isinstance(row, dict) and isinstance(row.get("prompt_id"), int)
    )
    for path, place, row in rows:
        id = row.get("prompt_id") if isinstance(row, dict) else None
        marks: list[Any] = [row.get(mark) for mark in MARKS] if isinstance(row, dict) else []
        if not isinstance(id, int):
            left_out.setdefault("marks without a prompt_id", []).append(f"{path.name}, entry {place}")
        elif id not in known:
            left_out.setdefault("marks of unknown prompts", []).append(str(id))
        elif times[id] > 1:
            twice.add(str(id))
        elif not all(isinstance(mark, (int, float)) and 0 <= mark <= HIGHEST for mark in marks):
            left_out.setdefault("marks other than 0 to 2 (999: the judge failed)", []).append(str(id))
        else:
            scores[id] = wiscore(marks)
    missing = [str(id) for id in sorted(known - times.keys())]
    left_out |= {
        reason: names
        for reason, names in (("prompts marked more than once", sorted(twice)), ("prompts without marks", missing))
        if names
    }
    refuse_many("wise.scores", len(scores), left_out, max_bad)
    return scored(WISEPrompts([p for p in data.prompts if p.id in scores], left_out), scores)


def scored(data: WISEPrompts, scores: dict[int, float]) -> Measurement:
    values, sizes, first = {}, {}, 1
    for name, last in CATEGORIES.items():
        own = [scores[p.id] for p in data.prompts if first <= p.id <= last]
        sizes[name], first = last - first + 1, last + 1
        if own:
            values[f"wise/{name}"] = average(own)
    warnings = data.warnings()
    if len(values) == len(CATEGORIES):
        means = [values[f"wise/{name}"].value for name in CATEGORIES]
        values["wise"] = bare(
            float(np.average(means, weights=list(sizes.values()))), len(scores), "a weighted mean over categories"
        )
    else:
        warnings.append("a category has no marks: the weighted mean over all six is not given")
    prompts = texts_digest([p.text for p in data.prompts])
    return Measurement(
        values,
        Provenance(n=len(scores), prompts=prompts, features="a judge's marks from files"),
        {"files": {}},
        warnings,
    )
