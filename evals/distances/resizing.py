"""Images to the size of a feature network, as the published programs do it: the filter moves FID by whole points
(Parmar et al. 2022).

clean              clean-fid: Pillow's bicubic with antialiasing, each channel in floating point, clipped to 0..255
legacy_pytorch     clean-fid's legacy_pytorch: bilinear, no antialiasing, centres of pixels aligned
legacy_tensorflow  the original FID (and torch-fidelity): bilinear, no antialiasing, corners of pixels aligned as
                   TensorFlow 1 had it
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from liquid_train.errors import UserError

MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")


def resize(pixels: np.ndarray, side: int, mode: str) -> np.ndarray:
    """uint8 [N, H, W, 3] -> fp32 [N, side, side, 3] in 0..255, not rounded. Raises UserError for an unknown mode."""
    if mode == "clean":
        return np.stack([clean(image, side) for image in pixels])
    if mode not in MODES:
        raise UserError(f"features.resize={mode}: one of {', '.join(MODES)}")
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    if mode == "legacy_pytorch":
        images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False).clamp(0, 255)
    else:
        images = along(along(images, side, 2), side, 3)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def clean(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> fp32 [side, side, 3]."""
    channels = [
        Image.fromarray(image[:, :, c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    return np.stack([np.asarray(c).clip(0, 255) for c in channels], axis=2)


def along(images: torch.Tensor, side: int, axis: int) -> torch.Tensor:
    """Linear interpolation along one axis with pixel i taken at i * old / new, as TensorFlow 1 did."""
    old = images.shape[axis]
    place = torch.arange(side, dtype=torch.float32) * (old / side)
    first = place.floor().long().clamp(max=old - 1)
    after = (first + 1).clamp(max=old - 1)
    share = (place - first).view([-1 if d == axis else 1 for d in range(4)])
    return images.index_select(axis, first) * (1 - share) + images.index_select(axis, after) * share
