"""easy-VQA's own test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.sources.easy_vqa import load_split
from evals.errors import NotMeasurable
from liquid_train.errors import UserError
from liquid_train.packages import install_command


@dataclass(frozen=True)
class RealShapes:
    """pixels uint8 [N, H, W, 3]; color and shape are None where the answers leave them open."""

    pixels: np.ndarray
    colors: list[str | None]
    shapes: list[str | None]


def real_images() -> RealShapes:
    """easy-VQA's test images as they are (not through the VQ). Raises NotMeasurable when the package is missing."""
    try:
        images = load_split("test")
    except UserError as error:
        remedy = f"{install_command('demo')}, or leave t2i, image_quality and image_tokenizer out of metrics"
        raise NotMeasurable(
            f"metrics: images are compared with those of the easy-vqa package, which is missing: {remedy}"
        ) from error
    pixels = np.stack([np.asarray(Image.open(i.path).convert("RGB")) for i in images])
    return RealShapes(pixels, [i.color for i in images], [i.shape for i in images])
