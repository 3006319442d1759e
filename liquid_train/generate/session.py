"""A trained model with its vocabulary, its card and its image tokenizer, opened for inference."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from liquid_train.backbone import ModelCard, load_for_inference
from liquid_train.config import VQSettings, package_path
from liquid_train.image_tokenizer import PARTS, ImageTokenizer
from liquid_train.vocabulary import Vocabulary

AUTO = "auto"  # vq.config, vq.checkpoint: those the model was trained with
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Session:
    """Everything inference needs, on one device."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    card: ModelCard
    device: torch.device

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of the pictures it was trained on. ValueError when it saw none."""
        if len(self.card.grid) != 2:
            raise ValueError("the model was trained on no pictures (liquid.json states no grid); train with a t2i, i2t or vqa source")
        return self.card.grid[0], self.card.grid[1]


def device_of(name: str) -> torch.device:
    """auto is the first GPU, else the CPU. ValueError for a device that is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"device={name}: one of auto, cpu, cuda, cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; give device=cpu or device=auto")
    return device


def open_model(folder: Path, device: str, precision: str = "fp32") -> Session:
    """Load a model/ folder. Raises ValueError when it is not one that liquid train wrote, or the device is not there."""
    where = device_of(device)
    transformers_logging.disable_progress_bar()
    model, vocabulary, card = load_for_inference(folder, where, DTYPES[precision])
    return Session(model, vocabulary, card, where)


def open_vq(session: Session, settings: VQSettings, parts: tuple[str, ...] = PARTS) -> ImageTokenizer:
    """Load the image tokenizer, by default the one the card names; ValueError when it is not the one of the training."""
    card = session.card
    config, weights = (given if given != AUTO else own for given, own in ((settings.config, card.vq_config), (settings.checkpoint, card.vq_checkpoint)))
    tokenizer = ImageTokenizer.from_files(package_path(config), package_path(weights), parts)
    if tokenizer.fingerprint != card.vq_fingerprint:
        raise ValueError(
            f"vq.checkpoint={weights}: not the VQ this model was trained with (fingerprint {tokenizer.fingerprint[:16]}, the model needs "
            f"{card.vq_fingerprint[:16]}); give vq.config and vq.checkpoint of that one"
        )
    return tokenizer.to(session.device)
