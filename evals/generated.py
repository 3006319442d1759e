"""Images that the measured model generates from prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evals.errors import NotMeasurable
from liquid_train.measurement.measurement import ModelHandle

if TYPE_CHECKING:
    from liquid_train.training.settings import EvalsConfig

BATCH = 64  # images generated together while training


@dataclass(frozen=True)
class GeneratedImages:
    """What a model generated: codes [n, rows, columns], pixels uint8 [n, H, W, 3], and one prompt and seed an image."""

    codes: np.ndarray
    pixels: np.ndarray
    prompts: list[str]
    seeds: list[int]
    sampler: dict[str, float | int | None]

    def first(self, count: int) -> GeneratedImages:
        return replace(
            self,
            codes=self.codes[:count],
            pixels=self.pixels[:count],
            prompts=self.prompts[:count],
            seeds=self.seeds[:count],
        )


def generate_images(
    handle: ModelHandle,
    prompts: list[str],
    *,
    seed: int,
    guidance: float,
    temperature: float,
    top_k: int | None,
    batch_size: int,
) -> GeneratedImages:
    """One image a prompt; image i is generated with seed + i. NotMeasurable for a model that has seen no images."""
    from liquid_train.generate.image_sampler import sample_images
    from liquid_train.generate.images import decode

    require_grid(handle)
    seeds = [seed + i for i in range(len(prompts))]
    codes = sample_images(
        handle.model,
        handle.vocabulary,
        prompts,
        seeds=seeds,
        grid=(handle.grid[0], handle.grid[1]),
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        batch_size=batch_size,
        suffix=handle.suffix,
        size=handle.stated_size,
        progress=lambda *p: handle.progress("codes", *p),
    )
    return GeneratedImages(
        codes,
        decode(handle.image_tokenizer, codes),
        prompts,
        seeds,
        {"guidance": guidance, "temperature": temperature, "top_k": top_k},
    )


def generate_shared(handle: ModelHandle, prompts: list[str], settings: EvalsConfig, count: int) -> GeneratedImages:
    """The prompts in turn until there are `count`; rank r generates every world_size-th image, image i with seed i; a
    collective. Raises NotMeasurable for a model that has seen no images."""
    from liquid_train.generate.image_sampler import sample_images

    require_grid(handle)
    own, chosen = handle.own(count), [prompts[i % len(prompts)] for i in range(count)]
    codes = np.zeros((count, *handle.grid), dtype=np.int64)
    if own:
        codes[own] = sample_images(
            handle.model,
            handle.vocabulary,
            [chosen[i] for i in own],
            seeds=own,
            grid=(handle.grid[0], handle.grid[1]),
            guidance=settings.guidance,
            temperature=settings.temperature,
            top_k=settings.top_k,
            batch_size=BATCH,
            suffix=handle.suffix,
            size=handle.stated_size,
        )
    codes = handle.gathered(codes)
    sampler = {"guidance": settings.guidance, "temperature": settings.temperature, "top_k": settings.top_k}
    return GeneratedImages(codes, decode_shared(handle, codes), chosen, list(range(count)), sampler)


def decode_shared(handle: ModelHandle, codes: np.ndarray) -> np.ndarray:
    """codes [n, rows, columns], n >= 1 -> pixels uint8 [n, H, W, 3], each rank having decoded its own; a collective."""
    from liquid_train.generate.images import decode

    side, own = handle.image_tokenizer.downsampling, handle.own(len(codes))
    pixels = np.zeros((len(codes), codes.shape[1] * side, codes.shape[2] * side, 3), dtype=np.uint8)
    if own:
        pixels[own] = decode(handle.image_tokenizer, codes[own])
    return handle.gathered(pixels)


def require_grid(handle: ModelHandle) -> None:
    if len(handle.grid) != 2:
        raise NotMeasurable(
            "the model was trained on no images (liquid.json states no grid); train with a t2i, i2t or vqa source"
        )
