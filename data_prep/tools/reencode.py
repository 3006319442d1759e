"""Rows of a set's source, drawn at random, tokenized once more and compared with what the set holds for them.

A code may flip when a batch has other images in it, or on another device. A set made on a CPU is therefore encoded
again in the very batches it was made of; otherwise a small share of other codes is allowed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.encode.crops import Crop
from data_prep.settings import TokenizeSettings
from data_prep.shard_set.check import Problems, dropped_rows
from data_prep.shard_set.folder import DROPPED_NAME
from data_prep.shard_set.plan import SetPlan, flat_keys
from data_prep.shard_set.samples import NewSample, rows_per_task, samples_of
from data_prep.shard_set.stream import chunk_files, chunk_spans
from data_prep.shard_set.vq import AskedVQ
from data_prep.shard_set.writer import shard_name, to_json
from data_prep.source import Source, SourceRow
from data_prep.sources import SOURCES, open_source
from liquid_train.data.shard_format import Sample, decode_sample
from liquid_train.errors import UserError

if TYPE_CHECKING:
    from data_prep.encode.encoder import BatchEncoder, Cropped

ALLOWED = {"fp32": 0.001, "bf16": 0.05}  # share of codes that may differ
NO_IDS = np.zeros(0, np.uint32)
ALLOWED_IN_ONE = 0.25  # of one image's codes: another image has more than that
# settings that a recipe records by their names
RECORDED = ("split", "copies", "image_key", "text_key", "images", "keep", "options")


def needs_input(plan: SetPlan) -> bool:
    """Whether the source of a set reads files, which have to be named again. Raises UserError for an unknown source."""
    return SOURCES.find(plan.recipe["source"]["name"], "recipe.source.name").reads_input


def open_again(plan: SetPlan, files: str | None, images: str | None, tokenizer: str | None = None) -> Source:
    """The source that a set was made of. Raises UserError where it is not there, or not the same any more."""
    recipe = plan.recipe["source"]
    options = {key: recipe[key] for key in RECORDED if key in recipe}
    options |= {key: value for key, value in (("images", images), ("tokenizer", tokenizer)) if value is not None}
    try:
        source = open_source(
            TokenizeSettings(source=recipe["name"], input=files, **options), int(recipe.get("seed", 0))
        )
    except UserError as error:
        raise UserError(
            str(error)
            .replace("tokenize.input", "--input")
            .replace("tokenize.images", "--images")
            .replace("tokenize.tokenizer", "--tokenizer")
        ) from error
    known = {key: recipe[key] for key in ("name", "options") if key in recipe}
    there, here = flat_keys({**recipe, "images": None}), flat_keys({**known, **source.recipe(), "images": None})
    # other times of change are no other content: copies of the files will do, for rows are encoded again
    compared = [key for key in there.keys() | here.keys() if key.rpartition(".")[2] != "modified"]
    different = sorted(key for key in compared if there.get(key) != here.get(key))
    if different:
        raise UserError(
            f"{'--input: ' if files else ''}the source is not what the set was made of: other "
            f"{', '.join(different[:4])}; "
            "give the same files under the same names"
        )
    return source


@dataclass
class Shown:
    """An image for the contact sheet: pixels uint8 [h, w, 3] as the VQ got them, and the set's codes for them."""

    key: str
    pixels: np.ndarray | None
    codes: np.ndarray
    caption: str


@dataclass
class Comparison:
    """rows: compared. codes, different: of the images among them. shown: those that were asked for."""

    rows: int = 0
    codes: int = 0
    different: int = 0
    shown: list[Shown] = field(default_factory=list)


class Reencoder:
    """Tokenizes rows of `source` as the plan says; `encoder` is None for texts."""

    def __init__(
        self, path: Path, index: dict[str, Any], plan: SetPlan, source: Source, vq: AskedVQ, problems: Problems
    ) -> None:
        self.path, self.index, self.plan, self.source, self.problems = path, index, plan, source, problems
        self.comparison = Comparison()
        self.encoder: BatchEncoder | None = None
        self.same_batches = False
        if plan.encoder is not None:
            self.encoder, self.same_batches = _open_encoder(plan, vq)
            crop = plan.recipe["crop"]
            sizes = tuple((int(width), int(height)) for width, height in crop.get("sizes", ()))
            self.crop = Crop(
                crop["kind"],
                int(plan.downsampling or 1),
                int(crop.get("size", 0)),
                sizes,
                crop["max_aspect"],
                "hashes" in plan.recipe,
            )

    def compare(self, rows: list[int], show: set[int], advance: Callable[[int], None]) -> Comparison:
        """Compare these rows, ascending; those in `show` are kept for the contact sheet."""
        from data_prep.encode.encoder import one_exact_thread

        dropped = self._dropped(set(rows))
        with one_exact_thread():
            for shard, generated in groupby(rows, lambda row: row // self.plan.shard_size):
                wanted = list(generated)
                items = dict(self.plan.read_rows(self.source, self._with_batches(wanted)))
                results = self._encode(items, wanted)
                made = {row: self._samples(row, items[row], results[row]) for row in wanted}
                there = self._find(
                    shard, {key for samples in made.values() if not isinstance(samples, str) for key, *_ in samples}
                )
                for row, samples in made.items():
                    self._compare_row(shard_name(shard), row, items[row], samples, there, dropped.get(row), row in show)
                    advance(1)
        self._judge()
        return self.comparison

    def _with_batches(self, rows: list[int]) -> list[int]:
        """The rows of one shard and all that may have shared a batch with one of them."""
        if not self.same_batches or self._batch == 1:
            return rows
        size, shard = self.plan.shard_size, rows[0] // self.plan.shard_size
        first, last = shard * size, shard * size + self.plan.rows_of(shard)
        tasks = sorted({(row - first) // self._task_rows for row in rows})
        return [
            row
            for task in tasks
            for row in range(first + task * self._task_rows, min(last, first + (task + 1) * self._task_rows))
        ]

    @property
    def _batch(self) -> int:
        assert self.encoder is not None
        return self.encoder.settings.batch_size

    @property
    def _task_rows(self) -> int:
        return rows_per_task(self._batch)

    def _encode(self, items: dict[int, SourceRow], wanted: list[int]) -> dict[int, Any]:
        """Row -> Encoded, the reason for having no sample, or None for a row without an image. Batches without a
        wanted row are left out."""
        if self.encoder is None:
            return {row: items[row].problem for row in wanted}
        from data_prep.encode.encoder import Cropped, Encoded, prepare

        results: dict[int, Any] = {row: item.problem or prepare(item.image, self.crop) for row, item in items.items()}
        first = self.plan.shard_size * (wanted[0] // self.plan.shard_size)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, result in results.items():
            if isinstance(result, Cropped):
                task = (row - first) // self._task_rows if self.same_batches else 0
                groups.setdefault((task, *result.pixels.shape), []).append(row)
        self._shown_pixels: dict[int, Cropped] = {
            row: results[row] for row in wanted if isinstance(results[row], Cropped)
        }
        for rows in groups.values():
            for i in range(0, len(rows), self._batch):
                batch = rows[i : i + self._batch]
                if not set(batch).isdisjoint(wanted):
                    codes = self.encoder.to_numpy(self.encoder.encode(np.stack([results[row].pixels for row in batch])))
                    results.update(
                        {row: Encoded(grid, results[row].info) for row, grid in zip(batch, codes, strict=True)}
                    )
        return results

    def _samples(self, row: int, item: SourceRow, result: Any) -> str | list[NewSample]:
        """What a row gives, or why it gives nothing."""
        return result if isinstance(result, str) else samples_of(self.plan, row, item, result)

    def _find(self, shard: int, keys: set[str]) -> dict[str, Sample]:
        """The samples of a shard with these keys; damaged ones are not found (and were listed by the pass over the
        set)."""
        entry, found = self.index["shardlist"][shard], {}
        try:
            for group in chunk_files(self.path / entry["url"], chunk_spans(entry)):
                found.update({key: group[key] for key in keys & group.keys()})
        except OSError:
            return {}
        samples = {}
        for key, files in found.items():
            try:
                samples[key] = decode_sample(key, files)
            except ValueError:
                continue
        return samples

    def _compare_row(
        self, url: str, row: int, item: SourceRow, made: Any, there: dict[str, Sample], reason: str | None, show: bool
    ) -> None:
        self.comparison.rows += 1
        if isinstance(made, str):
            if reason != made:
                self.problems.add(
                    "rows that were dropped",
                    f"{url}, row {row} ({item.origin}): cannot be used ({made}), "
                    + (f"{DROPPED_NAME} says {reason!r}" if reason else "yet it was not dropped"),
                )
            return
        if reason is not None:
            self.problems.add(
                "rows that were dropped",
                f"{url}, row {row} ({item.origin}): {DROPPED_NAME} says {reason!r}, but it can be used",
            )
            return
        for new in made:
            sample = there.get(key := new.key)
            if sample is None:
                self.problems.add(
                    "samples that are not found",
                    f"{url}, {key}: row {row} of the source ({item.origin}) gives it, but it cannot be read there",
                )
                continue
            self._compare_sample(f"{url}, {key}", sample, new)
            if show and "codes" in sample:
                self.comparison.shown.append(
                    Shown(key, self._shown_pixels[row].pixels, sample["codes"], caption_of(sample))
                )

    def _compare_sample(self, where: str, sample: Sample, new: NewSample) -> None:
        codes = new.codes
        written = None if new.text is None else new.text.encode("utf-8", "backslashreplace").decode()
        if sample.get("text") != written:
            self.problems.add(
                "texts", f"{where}: text {_quoted(sample.get('text'))} there, {_quoted(written)} in the source"
            )
        if not np.array_equal(sample.get("ids", NO_IDS), NO_IDS if new.ids is None else new.ids):
            self.problems.add("ids", f"{where}: other token ids there than in the source")
        expected = json.loads(to_json(new.info))
        if different := sorted(
            key for key in expected.keys() | sample["info"].keys() if expected.get(key) != sample["info"].get(key)
        ):
            self.problems.add("json", f"{where}: its json has other {', '.join(different)} than the source")
        if codes is None or "codes" not in sample:
            if (codes is None) != ("codes" not in sample):
                self.problems.add(
                    "codes",
                    f"{where}: {'no codes there' if codes is not None else 'codes there'}, the source has it otherwise",
                )
            return
        if codes.shape != sample["codes"].shape:
            self.problems.add(
                "codes", f"{where}: a grid of {sample['codes'].shape} there, {codes.shape} from the source"
            )
            return
        different_codes = int((codes != sample["codes"]).sum())
        self.comparison.codes += codes.size
        self.comparison.different += different_codes
        if different_codes > max(1, ALLOWED_IN_ONE * codes.size):
            self.problems.add(
                "codes", f"{where}: {different_codes:,} of {codes.size:,} codes are not those of its image"
            )

    def _judge(self) -> None:
        allowed = ALLOWED[self.plan.recipe.get("precision", "fp32")]
        if self.comparison.different > allowed * self.comparison.codes:
            self.problems.add(
                "share of codes",
                f"{self.comparison.different:,} of {self.comparison.codes:,} codes differ from those encoded again: "
                f"more than the {allowed:.1%} that another device or batch explains",
            )

    def _dropped(self, rows: set[int]) -> dict[int, str]:
        """Why these rows were dropped, if they were. A file that cannot be read was listed by the pass over the set."""
        if not Counter(self.index.get("dropped", {})).total():
            return {}
        try:
            return {row["row"]: row["reason"] for row in dropped_rows(self.path) if row["row"] in rows}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _open_encoder(plan: SetPlan, vq: AskedVQ) -> tuple[BatchEncoder, bool]:
    """The encoder, on the device of the set's making where there is one, and whether its batches can be made again."""
    import torch

    from data_prep.encode.encoder import BatchEncoder, EncoderSettings

    assert plan.encoder is not None
    recorded = plan.encoder["device"]
    device = recorded if recorded == "cpu" or torch.cuda.is_available() else "cpu"
    batch = int(plan.encoder["batch_size"]) if device == recorded else 1
    return BatchEncoder(
        EncoderSettings(vq.settings, device, plan.recipe["precision"], False, batch)
    ), device == recorded == "cpu"


def caption_of(sample: Sample) -> str:
    """The text under an image of a contact sheet: its caption, else its first question, else its key."""
    if "text" in sample:
        return sample["text"]
    questions = sample["info"].get("questions")
    if questions and isinstance(questions[0], dict):
        return f"{questions[0].get('question')} {', '.join(map(str, questions[0].get('answers', [])))}"
    return sample["key"]


def _quoted(text: str | None) -> str:
    return "missing" if text is None else repr(text if len(text) <= 40 else text[:37] + "...")
