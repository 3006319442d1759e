"""Images as files, as pixels and as codes.

file -> RGB, resized and cropped to the nearest trained size -> pixels uint8 [N, H, W, 3] <-> VQ <-> codes [N, rows,
columns]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from liquid_train.files import naming
from liquid_train.image_tokenizer.base import ImageTokenizer, scale_pixels
from liquid_train.image_tokenizer.preprocess import cover, nearest_size, read_rgb

CPU_BATCH = 2  # a CPU encodes fastest in small batches


def load_image(file: Path | bytes, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """An image file, or its content -> RGB uint8 [height, width, 3], of that of `sizes` (width, height) whose aspect
    ratio is nearest.

    Read, scaled and cropped as `liquid tokenize` does. Raises one of images.READ_ERRORS when the file is missing or
    broken.
    """
    pixels = read_rgb(file)
    size = nearest_size(sizes, pixels.shape[1], pixels.shape[0])
    return pixels if pixels.shape[1::-1] == size else cover(pixels, size)


@torch.inference_mode()
def encode(tokenizer: ImageTokenizer, pixels: np.ndarray, batch_size: int = CPU_BATCH) -> np.ndarray:
    """pixels uint8 [N, H, W, 3] -> codes int64 [N, rows, columns]."""
    parts = [
        tokenizer.encode(images_of(tokenizer, pixels[i : i + batch_size])).cpu().numpy()
        for i in range(0, len(pixels), batch_size)
    ]
    return np.concatenate(parts)


def images_of(tokenizer: ImageTokenizer, pixels: np.ndarray) -> torch.Tensor:
    """pixels uint8 [N, H, W, 3] -> what the VQ takes: fp32 [N, 3, H, W] in [-1, 1], on its device."""
    return scale_pixels(torch.from_numpy(np.array(pixels)).to(tokenizer.device))


@torch.inference_mode()
def decode(tokenizer: ImageTokenizer, codes: np.ndarray) -> np.ndarray:
    """codes [N, rows, columns] -> pixels uint8 [N, H, W, 3], clamped.

    One image at a time: in a larger batch the last bit of a pixel depends on the other images.
    """
    device, parts = tokenizer.device, []
    for grid in codes:
        images = tokenizer.decode(torch.from_numpy(np.asarray(grid[None], dtype=np.int64)).to(device))
        parts.append(images.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """pixels uint8 [H, W, 3]; a PNG whose name appears only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with naming(partial):
        Image.fromarray(pixels).save(partial, format="png")
    partial.replace(path)


def contact_sheet(pixels: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Images of one size [H, W, 3] in reading order on white, `columns` a row."""
    height, width = pixels[0].shape[:2]
    rows = -(-len(pixels) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for n, image in enumerate(pixels):
        top, left = (n // columns) * (height + gap), (n % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
