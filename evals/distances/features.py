"""Networks that turn images into features: what an image distance measures is decided here.

vq         the image tokenizer's own encoder: always there, offline; not comparable with any published number
inception  the original FID network as TorchScript (inception-2015-12-05.pt, as clean-fid and StyleGAN use it),
           features.path=FILE
hf         a vision model in Hugging Face format (CLIP, DINOv2), features.path=FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from evals.distances.resizing import MODES, resize
from evals.json_files import read_object
from liquid_train.errors import UserError
from liquid_train.files import sha256_of
from liquid_train.generate.images import images_of
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.measurement.settings import FeaturesConfig

INCEPTION_SIDE = 299
BATCH = 8


@dataclass(frozen=True)
class FeatureNetwork:
    """name: what it is, in words. weights: sha256 of its weights. resize: how images get to its size, in words.
    compute: uint8 [n, H, W, 3] -> fp32 [n, d] for one batch."""

    name: str
    weights: str
    resize: str
    compute: Callable[[np.ndarray], Tensor]

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray, batch_size: int = BATCH) -> np.ndarray:
        """pixels uint8 [N, H, W, 3], N >= 1 -> fp32 [N, d]."""
        parts = [self.compute(pixels[i : i + batch_size]).float().cpu() for i in range(0, len(pixels), batch_size)]
        return torch.cat(parts).numpy()


def open_features(config: FeaturesConfig, tokenizer: ImageTokenizer) -> FeatureNetwork:
    """Raises UserError with the key and the remedy for a path that is not what `kind` needs."""
    if config.resize not in MODES:
        raise UserError(f"features.resize={config.resize}: one of {', '.join(MODES)}")
    if config.kind == "vq":
        if "encoder" not in tokenizer.parts:
            raise ValueError("features.kind=vq: the image tokenizer was opened without its encoder")
        return vq_features(tokenizer)
    makers = {"inception": inception_features, "hf": hf_features}
    if config.kind not in makers:
        raise UserError(f"features.kind={config.kind}: one of vq, {', '.join(makers)}")
    if config.path is None:
        raise UserError(
            f"features.kind={config.kind} needs features.path: "
            f"{'the TorchScript file' if config.kind == 'inception' else 'a model folder'}"
        )
    return makers[config.kind](Path(config.path), config.resize, tokenizer.device)


def feature_name(tokenizer: ImageTokenizer) -> str:
    """An honest description of `vq_features`."""
    return f"{tokenizer.describe_features()}; not Inception features, not comparable with FID"


def vq_features(tokenizer: ImageTokenizer) -> FeatureNetwork:
    """The image tokenizer's own features. Images are taken at their own size."""

    def compute(pixels: np.ndarray) -> Tensor:
        return tokenizer.features(images_of(tokenizer, pixels))

    return FeatureNetwork(feature_name(tokenizer), tokenizer.fingerprint, "none", compute)


def inception_features(path: Path, mode: str, device: torch.device) -> FeatureNetwork:
    """2,048 features of the last pooling. The network itself resizes as TensorFlow 1 did; with other modes that part is
    passed by."""
    if not path.is_file():
        raise UserError(
            f"features.path={path}: no such file; give inception-2015-12-05.pt, the TorchScript of the FID network"
        )
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(
            f"features.path={path}: not TorchScript; give inception-2015-12-05.pt, the TorchScript of the FID network"
        ) from error

    def compute(pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(resize(pixels, INCEPTION_SIDE, mode)).permute(0, 3, 1, 2).to(device)
        return network.layers((images - 128) / 128).flatten(1)

    return FeatureNetwork(
        f"Inception v3 of FID, last pooling ({path.name})", sha256_of(path), f"{mode}, {INCEPTION_SIDE} pixels", compute
    )


def hf_features(path: Path, mode: str, device: torch.device) -> FeatureNetwork:
    """The pooled output of a vision model; of CLIP, its projection into the space shared with text."""
    from transformers import AutoModel

    weights = folder_weights(path, "features.path", "a CLIP or DINOv2 model")
    about = read_object(path / "preprocessor_config.json") if (path / "preprocessor_config.json").is_file() else {}
    if not {"image_mean", "image_std"} <= about.keys():
        raise UserError(
            f"features.path={path}: preprocessor_config.json with image_mean and image_std is missing; copy it from "
            "the model's repository"
        )
    try:
        model = AutoModel.from_pretrained(path, local_files_only=True).eval().to(device)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"features.path={path}: no model that transformers can load: {error}") from error
    vision = getattr(model, "vision_model", model)
    projection = getattr(model, "visual_projection", torch.nn.Identity())
    side = vision.config.image_size
    mean, std = (torch.tensor(about[key], device=device).view(3, 1, 1) for key in ("image_mean", "image_std"))

    def compute(pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(resize(pixels, side, mode)).permute(0, 3, 1, 2).to(device) / 255
        return projection(vision(pixel_values=(images - mean) / std).pooler_output)

    return FeatureNetwork(
        f"{type(model).__name__} {path.name}, pooled", weights, f"{mode}, {side} pixels, not cropped", compute
    )


def folder_weights(path: Path, key: str, what: str) -> str:
    """sha256 of a Hugging Face folder's safetensors, of several the beginnings. Raises UserError with the key where
    they are not there."""
    files = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not files:
        raise UserError(f"{key}={path}: no config.json with safetensors there; give the folder of {what}")
    return sha256_of(files[0]) if len(files) == 1 else "+".join(sha256_of(f)[:16] for f in files)
