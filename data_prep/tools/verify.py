"""`liquid data verify`: read an entire set again, and compare a sample of it with its source."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shard_set.check import SHOWN, Problems, SetCheck, index_faults
from data_prep.shard_set.maker import progress
from data_prep.shard_set.plan import SetPlan
from data_prep.shard_set.stream import open_index
from data_prep.shard_set.vq import FLAGS, AskedVQ, mismatch
from liquid_train.data.shard_format import INDEX_NAME
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError

if TYPE_CHECKING:
    from data_prep.tools.reencode import Comparison, Shown
    from liquid_train.image_tokenizer.base import ImageTokenizer

MAX_SHOWN = 64  # images of a contact sheet


@dataclass(frozen=True)
class VerifyRequest:
    """The options of `liquid data verify`. sample: rows to compare. sheet: where the contact sheet goes."""

    vq: AskedVQ
    input: str | None = None
    images: str | None = None
    tokenizer: str | None = None
    sample: int = 64
    seed: int = 0
    sheet: Path | None = None


def verify(path: Path, request: VerifyRequest) -> int:
    """Print what is wrong, a line each, or one line that all is well; 1 or 0. Raises UserError for requests that
    cannot be followed."""
    try:
        index = open_index(path)
    except UserError as error:
        if not (path / INDEX_NAME).is_file():
            raise
        print(error)  # the right folder, but its index is damaged
        return 1
    if faults := index_faults(index):
        print("\n".join(faults[:SHOWN]))
        print(
            f"{path}: {len(faults):,} fault{'s' if len(faults) > 1 else ''} of {INDEX_NAME}; nothing else was checked"
        )
        return 1
    return _Verification(path, index, request).run()


class _Verification:
    def __init__(self, path: Path, index: dict[str, Any], request: VerifyRequest) -> None:
        self.path, self.index, self.request = path, index, request
        self.plan = SetPlan.from_json(index)
        self.problems = Problems()
        self.vq = request.vq.of_set(index)
        self.notes: list[str] = []  # parts of the summary
        self.has_codes = "vq_fingerprint" in index or "max_code" in index
        self.vq_fits = False

    def run(self) -> int:
        self._check_vq()
        source = self._open_source()
        self._check_sheet()
        entries = self.index["shardlist"]
        samples = sum(entry["nsamples"] for entry in entries)
        with progress(f"reading {self.path.name}", samples, sys.stdout.isatty()) as advance:
            SetCheck(self.path, self.index, self.problems).run(advance)
        shown = self._compare(source) if source is not None else []
        if self.request.sheet and self.vq_fits:
            self._write_sheet(shown or self._draw(samples))
        if self.problems:
            print("\n".join(self.problems.lines()))
            print(
                f"{self.path}: {len(self.problems):,} problem{'s' if len(self.problems) > 1 else ''} "
                f"({'; '.join([*_counted(self.problems), *self.notes])})"
            )
            return 1
        size = sum(entry["bytes"] for entry in entries)
        what = f"{samples:,} samples in {len(entries):,} shards, {size / 2**20:,.1f} MiB: all as recorded"
        print(f"{self.path}: {'; '.join([what, *self.notes])}")
        return 0

    def _check_vq(self) -> None:
        vq = self.vq
        if not self.has_codes:
            if vq.given:
                raise UserError(f"{FLAGS}: {self.path} is a set of texts, no VQ made it")
            return
        recorded = (
            self.plan.recipe["vq"].get("fingerprint")
            if self.plan and isinstance(self.plan.recipe.get("vq"), dict)
            else None
        )
        if recorded and recorded != self.index.get("vq_fingerprint"):
            self.problems.add("VQ", f"{INDEX_NAME}: vq_fingerprint is not that of its recipe, {recorded[:16]}")
        model = vq.open(parts=())
        different = mismatch(self.index, model, vq)
        self.vq_fits = different is None
        if different and vq.given:
            self.problems.add("VQ", f"{INDEX_NAME}: {different}")
        elif different:
            self.notes.append(
                f"nothing was decoded or encoded again, for {vq.name} did not make these codes: give {FLAGS}"
            )
        elif "vq_fingerprint" in self.index:
            for name, value in (("codebook_size", model.codebook_size), ("downsampling", model.downsampling)):
                if self.index.get(name) != value:
                    self.problems.add("VQ", f"{INDEX_NAME}: {name} {self.index.get(name)}, its VQ has {value}")
            self.vq_fits = not self.problems

    def _check_sheet(self) -> None:
        sheet = self.request.sheet
        if sheet is None:
            return
        if not self.has_codes:
            raise UserError(f"--sheet {sheet}: {self.path} is a set of texts, there are no images in it")
        if not self.vq_fits and not self.problems:
            raise UserError(
                f"--sheet {sheet}: {self.vq.name} did not make these codes; give the one that did with {FLAGS}"
            )

    def _open_source(self) -> Any:
        """The source, if rows can be compared with it; else None, with the reason in the summary."""
        asked = self.request.input is not None
        if self.has_codes and not self.vq_fits:
            if asked and not self.problems:
                raise UserError(
                    f"--input {self.request.input}: {self.vq.name} did not make these codes; "
                    f"give the one that did with {FLAGS}"
                )
            return None
        if self.plan is None:
            if asked:
                raise UserError(
                    f"--input {self.request.input}: {INDEX_NAME} does not say how the set was made; leave --input out"
                )
            self.notes.append(f"not compared with its source: {INDEX_NAME} does not say how the set was made")
            return None
        if "filter" in self.plan.recipe:
            if asked:
                raise UserError(f"--input {self.request.input}: {self.path} is part of another set; verify that one")
            self.notes.append("not compared with its source: made of another set by `liquid data filter`")
            return None
        from data_prep.tools.reencode import needs_input, open_again

        try:
            if needs_input(self.plan) and not asked:
                self.notes.append("not compared with its source: give --input")
                return None
            return open_again(self.plan, self.request.input, self.request.images, self.request.tokenizer)
        except UserError as error:
            if asked:
                raise
            # a package that is missing or of another version
            self.notes.append(f"not compared with its source: {error}")
            return None

    def _compare(self, source: Any) -> list[Shown]:
        from data_prep.tools.reencode import Reencoder

        assert self.plan is not None
        draw = random.Random(self.request.seed)
        rows = draw.sample(range(self.plan.rows), min(self.request.sample, self.plan.rows))
        show = set(rows[:MAX_SHOWN]) if self.request.sheet else set()
        encoder = Reencoder(self.path, self.index, self.plan, source, self.vq, self.problems)
        with progress("comparing with the source", len(rows), sys.stdout.isatty()) as advance:
            comparison = encoder.compare(sorted(rows), show, advance)
        self.notes.append(_compared(comparison))
        return comparison.shown

    def _draw(self, samples: int) -> list[Shown]:
        """Samples at random without their originals."""
        from data_prep.tools.reencode import Shown, caption_of

        shards = ShardSet(self.path)
        numbers = random.Random(self.request.seed).sample(range(samples), min(self.request.sample, MAX_SHOWN, samples))
        generated = [sample for number in sorted(numbers) if (sample := shards.sample(number)) is not None]
        return [
            Shown(sample["key"], None, sample["codes"], caption_of(sample)) for sample in generated if "codes" in sample
        ]

    def _write_sheet(self, shown: list[Shown]) -> None:
        from data_prep.tools.contact_sheet import Tile, captioned_sheet
        from liquid_train.generate.images import decode, save_png

        assert self.request.sheet is not None
        if not shown:
            self.notes.append("no contact sheet: none of the drawn samples has an image")
            return
        model: ImageTokenizer = self.vq.open(parts=("decoder",))
        tiles, error, pixels = [], 0.0, 0
        with progress("decoding", len(shown), sys.stdout.isatty()) as advance:
            for image in shown:
                decoded = decode(model, image.codes[None])[0]
                tiles.append(Tile(image.pixels, decoded, image.caption))
                if image.pixels is not None and image.pixels.shape == decoded.shape:
                    error += float(((image.pixels.astype(float) - decoded) ** 2).sum())
                    pixels += decoded.size
                advance(1)
        quality = f"PSNR {10 * math.log10(255**2 * pixels / max(error, 1e-9)):.1f} dB" if pixels else ""
        title = f"{self.path.name}: " + (
            "left the image, right what its codes give; " + quality if quality else "what the codes give"
        )
        self.request.sheet.parent.mkdir(parents=True, exist_ok=True)
        save_png(self.request.sheet, captioned_sheet(tiles, title))
        self.notes.append(f"{self.request.sheet} shows {len(tiles)} images" + (f", {quality}" if quality else ""))


def _compared(comparison: Comparison) -> str:
    if not comparison.codes:
        return f"{comparison.rows} rows are as in the source"
    equal = comparison.codes - comparison.different
    return (
        f"{comparison.rows} rows tokenized again, {equal:,} of {comparison.codes:,} codes equal "
        f"({equal / comparison.codes:.2%})"
    )


def _counted(problems: Problems) -> list[str]:
    return [f"{kind}: {count:,}" for kind, count in problems.counts.items()]
