"""Images of a run folder as data URIs: small enough for one page, left out (and counted) when unreadable."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from liquid_train.report.run_reader import json_lines, json_object, number

MAX_FINAL = 60
MAX_GRIDS = 12
PIXEL_ART = 128  # images up to this side are enlarged without smoothing


@dataclass(frozen=True)
class ReportImage:
    """`uri` is None for a file that could not be read."""

    uri: str | None
    width: int = 0
    height: int = 0

    @property
    def pixelated(self) -> bool:
        return max(self.width, self.height) <= PIXEL_ART


def embed_image(path: Path, max_side: int) -> ReportImage:
    """An image file as a data URI: PNG up to max_side pixels a side, a smaller JPEG of it beyond."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ReportImage(None)
    kind = "png"
    options: dict[str, Any] = {"optimize": True}
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side))
        kind, options = "jpeg", {"quality": 88}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return ReportImage(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size)


def inside(folder: Path, name: Any) -> Path | None:
    """folder / name, or None when the name is no text or leads out of the folder (a report embeds only the run's
    files)."""
    if not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None


@dataclass(frozen=True)
class Gallery:
    """The images that `liquid generate` wrote at the end: [(image, prompt)], and how many there are in all."""

    images: list[tuple[ReportImage, str]]
    total: int
    unreadable: int


def final_images(run_dir: Path) -> Gallery:
    folder = run_dir / "samples" / "final"
    index = folder / "index.jsonl"
    rows = [row for row in json_lines(index) if row] if index.is_file() else []
    found = [(_load(folder, row.get("file"), 384), str(row.get("prompt", ""))) for row in rows[:MAX_FINAL]]
    good = [(image, prompt) for image, prompt in found if image.uri]
    return Gallery(good, len(rows), len(found) - len(good))


def _load(folder: Path, name: Any, max_side: int) -> ReportImage:
    path = inside(folder, name)
    return embed_image(path, max_side) if path else ReportImage(None)


@dataclass(frozen=True)
class SampleGrid:
    """One periodic grid of samples: prompts in reading order, `columns` a row."""

    step: int
    image: ReportImage
    prompts: list[str]
    columns: int | None
    guidance: float | None


def periodic_grids(run_dir: Path) -> tuple[list[SampleGrid], int]:
    """At most MAX_GRIDS grids, evenly spread with the first and the last among them, and how many there are in all."""
    files = sorted(path for path in run_dir.glob("samples/step-*.png") if path.stem.removeprefix("step-").isdigit())
    total = len(files)
    if total > MAX_GRIDS:
        files = [files[round(i * (total - 1) / (MAX_GRIDS - 1))] for i in range(MAX_GRIDS)]
    grids = []
    for path in files:
        image = embed_image(path, 1024)
        about = json_object(path.with_suffix(".json"), [])
        columns = number(about.get("columns"))
        prompts = [str(prompt) for prompt in about.get("prompts") or []]
        if image.uri:
            grids.append(
                SampleGrid(
                    int(path.stem.removeprefix("step-")),
                    image,
                    prompts,
                    int(columns) if columns else None,
                    number(about.get("guidance")),
                )
            )
    return grids, total


def judged_sheet(run_dir: Path) -> ReportImage | None:
    """Every image that evals/t2i.json judges, one row a prompt; None where the evaluation kept no such sheet."""
    path = run_dir / "evals" / "drawn.png"
    image = embed_image(path, 2000) if path.is_file() else None
    return image if image and image.uri else None


@dataclass(frozen=True)
class Answered:
    """One question that the model answered. `image.uri` may be None. An answer is right as evals/metrics/vqa.py
    counts it."""

    image: ReportImage
    question: str
    answer: str
    truth: str

    @property
    def right(self) -> bool:
        return self.answer.strip().lower() == self.truth.strip().lower()


def answered(run_dir: Path, examples: Iterable[dict[str, Any]]) -> list[Answered]:
    """The questions that evals/vqa.json shows, with their images."""
    folder = run_dir / "evals"
    return [
        Answered(
            _load(folder, e.get("image"), 384),
            str(e.get("question", "")),
            str(e.get("answer", "")),
            str(e.get("truth", "")),
        )
        for e in examples
    ]
