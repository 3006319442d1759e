"""Frechet distance of two sets of pictures, on the image tokenizer's own features. This is not the Inception FID.

Each set is taken for a Gaussian of its features; the distance is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau
1982). The trace of the root is computed from symmetric eigenvalues, so that it stays real where a covariance has no full rank
(fewer pictures than features), which the root of the plain product does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liquid_train.generate.pictures import images_of
from liquid_train.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class Gaussian:
    """mean [d], covariance [d, d], fp64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Gaussian:
        """features [n, d], n >= 2; the covariance divides by n - 1."""
        features = np.asarray(features, dtype=np.float64)
        if len(features) < 2:
            raise ValueError(f"a Frechet distance needs at least 2 pictures in each set, not {len(features)}")
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Zero for equal Gaussians, never negative but for rounding, which is cut off."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ b.covariance @ root  # has the eigenvalues of C1 C2, and is symmetric
    trace = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(max(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace, 0.0))


def feature_name(tokenizer: ImageTokenizer) -> str:
    """An honest description of `encoder_features`."""
    width = tokenizer.encoder.conv_out.in_channels
    vq = tokenizer.fingerprint[:12]
    return f"mean over positions of the VQ encoder's last hidden layer ({width} features, VQ {vq}); not Inception features, not comparable with FID"


@torch.inference_mode()
def encoder_features(tokenizer: ImageTokenizer, pixels: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """pixels uint8 [N, H, W, 3] -> fp32 [N, d]: what the encoder's last convolution reads, averaged over positions."""
    parts: list[Tensor] = []
    hook = tokenizer.encoder.conv_out.register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].mean(dim=(2, 3)).float().cpu()))
    try:
        for i in range(0, len(pixels), batch_size):
            tokenizer.encoder(images_of(tokenizer, pixels[i : i + batch_size]))
    finally:
        hook.remove()
    return torch.cat(parts).numpy()
