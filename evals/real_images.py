"""Real images that generated ones and the image tokenizer are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals.errors import NotMeasurable
from evals.generated import decode_shared
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import ModelHandle

if TYPE_CHECKING:
    from liquid_train.image_tokenizer.base import ImageTokenizer

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class RealImages:
    """pixels uint8 [n, H, W, 3]; categories: one an image, None where it has none. name: what they are, in words.
    original: they have not been through the image tokenizer. codes: of some of them, one grid [rows, columns] an
    image, where the shard set has them."""

    pixels: np.ndarray
    categories: list[str | None]
    name: str
    original: bool
    codes: list[np.ndarray] = field(default_factory=list)

    def reconstructed(self, tokenizer: ImageTokenizer, count: int) -> np.ndarray:
        """The first `count` through the image tokenizer: uint8 [count, H, W, 3]."""
        from liquid_train.generate.images import decode, encode

        return decode(tokenizer, np.stack(self.codes[:count]) if self.codes else encode(tokenizer, self.pixels[:count]))


def decoded_images(handle: ModelHandle, shards: ShardSet, count: int) -> RealImages:
    """Of the first `count` samples those with codes; those of another grid than the first are left out. A
    collective."""
    codes: list[np.ndarray] = []
    for n in range(min(count, shards.num_samples)):
        sample = shards.sample(n)
        if sample is not None and "codes" in sample and (not codes or sample["codes"].shape == codes[0].shape):
            codes.append(sample["codes"])
    if not codes:
        raise NotMeasurable(f"{shards.path}: no images there to compare with")
    pixels = decode_shared(handle, np.stack(codes))
    return RealImages(pixels, [None] * len(pixels), f"{len(pixels)} held-out images as the VQ decodes them", False)


def images_of_folder(handle: ModelHandle, folder: Path, count: int) -> RealImages:
    """The first `count` image files of a folder by name, scaled and cut to the size of a generated image.

    Raises UserError for a folder without images, and for one that cannot be read.
    """
    from liquid_train.generate.images import load_image
    from liquid_train.image_tokenizer.preprocess import READ_ERRORS, reason

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:count]
    if not paths:
        raise UserError(f"images={folder}: no images there ({', '.join(IMAGE_SUFFIXES)})")
    pixels = []
    for path in paths:
        try:
            pixels.append(load_image(path, [handle.usual_size]))
        except READ_ERRORS as error:
            raise UserError(f"images={folder}: {path.name}: {reason(error)}; take it out of the folder") from error
    return RealImages(np.stack(pixels), [None] * len(pixels), f"{len(pixels)} images of {folder.name}", True)
