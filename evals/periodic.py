"""What is measured while training: the same questions, prompts, images and seeds each time, shared out over all
ranks.

    vqa            accuracy on the first questions of the held-out set
    grid           right colours and shapes of the images of samples/step-NNNNNNNN.png
    image_quality  distances of generated images from the held-out ones as the VQ decodes them
    self_vqascore  how well the model itself finds that those generated images fit their prompts
    captions       how well the model tells right captions of held-out images from wrong ones
    language       lm-evaluation-harness, where evals.language.tasks names some

Each goes into evals/step-NNNNNNNN-NAME.json with its provenance. A metric that cannot be measured is reported and does
not end the run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from evals.easy_vqa import shapes_and_colors as t2i
from evals.easy_vqa.captions import caption_pairs
from evals.metrics import vqa
from evals.metrics.image_quality import ImageSets, image_quality
from evals.metrics.language import check_language, language
from evals.metrics.self_vqascore import score_generated, tell_captions
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.files import dispensable
from liquid_train.generate.image_sampler import sample_images
from liquid_train.generate.images import contact_sheet, decode, save_png
from liquid_train.image_tokenizer.taming import ImageTokenizer
from liquid_train.measurement.measurement import Measurement, ModelHandle, write_measurement
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest
from liquid_train.training.settings import EvalsConfig
from liquid_train.vocabulary import Vocabulary

log = logging.getLogger(__name__)

PERIODIC = ("vqa", "grid", "image_quality", "self_vqascore", "captions", "language")
BATCH = 64  # images generated together


def evaluate(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    image_tokenizer: ImageTokenizer,
    config: EvalsConfig,
    *,
    sets: str | None,
    grid: tuple[int, ...],
    prompt: str,
    step: int,
    out_dir: Path,
    rank: int,
    world_size: int,
    last: bool = False,
    multiratio: Sequence[Sequence[int]] = (),
) -> dict[str, float]:
    """Metrics by the name they are logged under, the same on every rank; a collective: every rank holds the whole
    model.

    sets: the shard set whose questions are asked, None for no questions. grid: rows and columns of codes; empty where
    the model has seen no images. prompt: suffix of a text-to-image prompt. multiratio: as ModelHandle's. last:
    measure also what is not due by its period.
    Rank 0 writes out_dir/samples/step-NNNNNNNN.png and .json and out_dir/evals/step-NNNNNNNN-NAME.json.
    """
    handle = ModelHandle(model, vocabulary, image_tokenizer, grid, prompt, rank, world_size, multiratio=multiratio)
    metrics: dict[str, float] = {}
    due = {name for name in PERIODIC if last or step % config.periods.get(name, 1) == 0}
    for name, measured in measurements(handle, config, sets, step, out_dir, due):
        metrics |= {f"eval/{key}": value.value for key, value in measured.values.items()}
        if rank == 0:
            with dispensable(f"evals: {name} of step {step}"):
                write_measurement(out_dir / "evals", name, step, measured)
    return metrics


def measurements(
    handle: ModelHandle, config: EvalsConfig, sets: str | None, step: int, out_dir: Path, due: set[str]
) -> Iterator[tuple[str, Measurement]]:
    """(name, measurement) of everything that is due, the config asks for and the model can do; a collective."""
    shards = ShardSet(sets, codebook_size=handle.vocabulary.codebook_size) if sets is not None else None
    if shards is not None and config.vqa_samples and "vqa" in due:
        data = vqa.load_questions(shards, config.vqa_samples)
        yield "vqa", Measurement(vqa.shared_accuracy(handle, data), vqa.question_provenance(handle, data))
    judged = {"image_quality", "self_vqascore"} & due if shards is not None and config.quality_images else set()
    count = max(config.images if "grid" in due else 0, max(config.images, config.quality_images) if judged else 0)
    if len(handle.grid) == 2 and config.prompts and count:
        generated = generate_prompts(handle, config, count)
        if "grid" in due and config.images:
            if handle.rank == 0:
                with dispensable(f"evals: the images of step {step}"):
                    write_grid(
                        out_dir / "samples",
                        step,
                        generated.pixels[: config.images],
                        generated.prompts[: config.images],
                        config,
                    )
            yield "grid", grid_measurement(handle, generated, config.images)
        if shards is not None and "image_quality" in judged:
            yield from guarded("image_quality", lambda: quality(handle, generated, config, shards))
        if "self_vqascore" in judged:
            yield from guarded(
                "self_vqascore", lambda: score_generated(handle, t2i.generated_texts(generated), config.vqascore)
            )
    if shards is not None and config.caption_images and "captions" in due:
        yield from guarded(
            "captions", lambda: tell_captions(handle, caption_pairs(shards, config.caption_images, 0), config.vqascore)
        )
    if config.language.tasks and "language" in due:
        yield from guarded("language", lambda: language(handle, config.language, check_language(config.language)))


def guarded(name: str, measure: Callable[[], Measurement]) -> Iterator[tuple[str, Measurement]]:
    """The measurement, or nothing and a line where the data does not allow it: what every rank finds out alike
    (UserError)."""
    try:
        yield name, measure()
    except UserError as error:
        log.warning("evals: %s could not be measured: %s", name, error)


def grid_measurement(handle: ModelHandle, generated: t2i.GeneratedImages, count: int) -> Measurement:
    """Right colours and shapes of the first `count` images."""
    prompts, seeds = generated.prompts[:count], generated.seeds[:count]
    provenance = Provenance(
        n=len(prompts),
        prompts=texts_digest([*prompts, handle.suffix]),
        seeds=seeds_text(seeds),
        sampler=dict(generated.sampler),
        features="drawn_shapes, a judge of colours and outlines",
        dtype=handle.dtype,
    )
    return Measurement(t2i.right_values(generated.pixels[:count], prompts), provenance)


def quality(handle: ModelHandle, generated: t2i.GeneratedImages, config: EvalsConfig, shards: ShardSet) -> Measurement:
    """Distances of all generated images from the first held-out ones, on the codes' way through the VQ alike."""
    real = held_out_images(handle.image_tokenizer, str(shards.path), config.quality_reference)
    data = ImageSets(
        generated.pixels,
        real,
        generated.prompts,
        generated.seeds,
        [None] * len(generated.prompts),
        [None] * len(real),
        generated.sampler,
        f"{len(real)} held-out images as the VQ decodes them",
    )
    return image_quality(handle, data, config.features)


@lru_cache(maxsize=1)
def held_out_images(tokenizer: ImageTokenizer, path: str, count: int) -> np.ndarray:
    """Of the shard set at `path`: uint8 [n, H, W, 3] of the first `count` samples with codes; those of another grid
    than the first are left out."""
    codes: list[np.ndarray] = []
    shards = ShardSet(path, codebook_size=tokenizer.codebook_size)
    for n in range(min(count, shards.num_samples)):
        sample = shards.sample(n)
        if sample is not None and "codes" in sample and (not codes or sample["codes"].shape == codes[0].shape):
            codes.append(sample["codes"])
    if not codes:
        raise UserError(f"{path}: no images there to compare with")
    return decode(tokenizer, np.stack(codes))


def generate_prompts(handle: ModelHandle, config: EvalsConfig, count: int) -> t2i.GeneratedImages:
    """The prompts in turn until there are `count`; rank r draws every world_size-th image, image i with seed i; a
    collective."""
    prompts, own = [config.prompts[i % len(config.prompts)] for i in range(count)], handle.own(count)
    codes = np.zeros((count, *handle.grid), dtype=np.int64)
    if own:
        codes[own] = sample_images(
            handle.model,
            handle.vocabulary,
            [prompts[i] for i in own],
            seeds=own,
            grid=(handle.grid[0], handle.grid[1]),
            guidance=config.guidance,
            temperature=config.temperature,
            top_k=config.top_k,
            batch_size=BATCH,
            suffix=handle.suffix,
            size=handle.stated_size,
        )
    codes = handle.gathered(codes)
    sampler = {"guidance": config.guidance, "temperature": config.temperature, "top_k": config.top_k}
    return t2i.GeneratedImages(codes, decode(handle.image_tokenizer, codes), prompts, list(range(count)), sampler)


def write_grid(folder: Path, step: int, pixels: np.ndarray, prompts: list[str], config: EvalsConfig) -> None:
    """samples/step-NNNNNNNN.png, and next to it .json with what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = math.ceil(math.sqrt(len(prompts)))
    about: dict[str, Any] = {"step": step, "prompts": prompts, "columns": columns, "guidance": config.guidance}
    partial: Path = folder / f".step-{step:08d}.json.partial"
    partial.write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(folder / f"step-{step:08d}.json")
    save_png(folder / f"step-{step:08d}.png", contact_sheet(list(pixels), columns))
