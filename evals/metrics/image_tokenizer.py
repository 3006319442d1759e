"""What is lost between an image and its codes: PSNR, SSIM, distance of the reconstructions, and how much of the
codebook is used.

No model that reads or writes can be better than its image tokenizer: these are the bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evals.distances.frechet import FeatureSums, Gaussian, frechet_distance
from evals.errors import NotMeasurable
from evals.identity import features_identity, folder_identity
from evals.inputs import Inputs
from evals.metric import Metric
from evals.metrics import METRICS
from evals.sets import EvalSets
from liquid_train.measurement.measurement import Measurement, ModelHandle, average, bare
from liquid_train.measurement.provenance import Provenance, arrays_digest
from liquid_train.measurement.settings import FeaturesConfig

if TYPE_CHECKING:
    import torch

NO_ORIGINALS = "shard sets hold codes, not the original images; give images=FOLDER with image files"


@METRICS.register("image_tokenizer")
class ImageTokenizerQuality(Metric):
    """Of original images only: what the VQ decodes has lost already."""

    by_default = True
    reads = ("images",)

    def applies(self, sets: EvalSets) -> None:
        if self.job.images is None and not sets.easy_vqa:
            raise NotMeasurable(NO_ORIGINALS)

    def identity(self) -> Any:
        c = self.job
        return [features_identity(c.features), folder_identity(c.images), c.tokenizer_images]

    def prepare(self, inputs: Inputs) -> None:
        if not inputs.real.original:
            raise NotMeasurable(f"metrics: {self.name}: {NO_ORIGINALS}")

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        pixels = inputs.real.pixels[: self.job.tokenizer_images]
        return tokenizer_quality(handle, pixels, inputs.features, seed=inputs.seed)


def tokenizer_quality(handle: ModelHandle, pixels: np.ndarray, config: FeaturesConfig, *, seed: int = 0) -> Measurement:
    """pixels uint8 [N, H, W, 3], sides multiples of the downsampling, N at least 2; a collective, every rank encodes
    its share.

    psnr in dB and ssim: means over images, of 8-bit reconstructions. codebook_used: share of the entries that occur;
    codebook_perplexity: exp of the entropy of the codes, the number of entries that, used alike, would carry as much.
    """
    from evals.distances.features import open_features
    from liquid_train.generate.images import decode, encode

    tokenizer, own = handle.image_tokenizer, handle.own(len(pixels))
    network = open_features(config, tokenizer)
    per_image = np.zeros((2, len(pixels)))
    counts = np.zeros(tokenizer.codebook_size)
    parts = []
    for done, n in enumerate(own):
        codes = encode(tokenizer, pixels[n : n + 1])
        made = decode(tokenizer, codes)
        counts += np.bincount(codes.ravel(), minlength=len(counts))
        per_image[:, n] = psnr(pixels[n], made[0]), ssim(pixels[n], made[0])
        parts.append((network(pixels[n : n + 1]), network(made)))
        handle.progress("reconstructions", done + 1, len(own))
    width = network(pixels[:1]).shape[1]
    real, made_features = (np.concatenate([p[i] for p in parts]) if parts else np.zeros((0, width)) for i in (0, 1))
    sums = [
        FeatureSums.from_vector(handle.gathered(FeatureSums.of(f).as_vector())).gaussian()
        for f in (real, made_features)
    ]
    per_image, counts = handle.gathered(per_image), handle.gathered(counts)
    shares = counts[counts > 0] / counts.sum()
    n_codes = int(counts.sum())
    name = "rfid" if config.kind == "inception" else "reconstruction_frechet"
    values = {
        "psnr": average(per_image[0], seed),
        "ssim": average(per_image[1], seed),
        name: bare(distance(sums), len(pixels), "pairs are not independent sets"),
        "codebook_used": bare(len(shares) / len(counts), n_codes, "grows with the number of images"),
        "codebook_perplexity": bare(float(np.exp(-(shares * np.log(shares)).sum())), n_codes, "of all codes together"),
    }
    provenance = Provenance(
        n=len(pixels),
        data=arrays_digest(pixels),
        resize=network.resize,
        features=network.name,
        feature_weights=network.weights,
        dtype=str(next(tokenizer.parameters()).dtype).removeprefix("torch."),
    )
    return Measurement(values, provenance, {"vq_fingerprint": tokenizer.fingerprint})


def distance(pair: list[Gaussian]) -> float:
    return frechet_distance(pair[0], pair[1])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB of two uint8 images [H, W, 3]; equal ones get 100, not infinity, so that a mean exists."""
    # here: 1 to 3 seconds, which every other evaluation, and training, would pay
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if np.array_equal(a, b):
        return 100.0
    return min(100.0, float(peak_signal_noise_ratio(as_batch(a), as_batch(b), data_range=255.0)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 images [H, W, 3], 11 pixels Gaussian window."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(as_batch(a), as_batch(b), data_range=255.0)
    assert isinstance(found, torch.Tensor)
    return float(found)


def as_batch(pixels: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).unsqueeze(0).double()
