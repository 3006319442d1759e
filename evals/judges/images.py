"""Images with the texts that they are judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.generated import GeneratedImages


@dataclass(frozen=True)
class Images:
    """pixels uint8 [n, H, W, 3] and of each the text it was generated from, the skills that it asks for (may be
    none), and its seed."""

    pixels: np.ndarray
    texts: list[str]
    tags: list[list[str]]
    seeds: list[int]
    sampler: dict[str, float | int | None]

    @classmethod
    def of(cls, generated: GeneratedImages, tags: list[list[str]] | None = None) -> Images:
        """tags: by default none."""
        no_tags: list[list[str]] = [[] for _ in generated.prompts]
        return cls(generated.pixels, generated.prompts, tags or no_tags, generated.seeds, generated.sampler)
