"""A CLIP model in a local folder: how near an image and its text are in its space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from evals.distances.features import folder_weights
from evals.settings import CLIPScoreConfig
from liquid_train.errors import UserError


@dataclass(frozen=True)
class CLIP:
    """The model with its processor; longest: tokens of a text."""

    model: Any
    processor: Any
    longest: int
    name: str
    weights: str

    def is_long(self, text: str) -> bool:
        return len(self.processor.tokenizer(text).input_ids) > self.longest

    @torch.inference_mode()
    def cosines(self, pixels: np.ndarray, texts: list[str]) -> np.ndarray:
        """pixels uint8 [n, H, W, 3] -> fp64 [n]. Longer texts are cut."""
        images = [Image.fromarray(image) for image in pixels]
        inputs = self.processor(
            text=texts, images=images, return_tensors="pt", padding=True, truncation=True, max_length=self.longest
        )
        found = self.model(**inputs.to(self.model.device, self.model.dtype))
        return (found.image_embeds.double() * found.text_embeds.double()).sum(-1).cpu().numpy()  # both have length 1


def open_clip(config: CLIPScoreConfig, device: torch.device) -> CLIP:
    """Raises UserError for a folder without a CLIP model and its processor."""
    from transformers import AutoConfig, CLIPModel, CLIPProcessor

    path = Path(str(config.model))
    weights = folder_weights(path, "clipscore.model", "a CLIP model")
    try:
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if kind != "clip":
            raise UserError(f"its model_type is {kind}")
        model = CLIPModel.from_pretrained(path, local_files_only=True).eval().to(device)
        processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise UserError(
            f"clipscore.model={path}: cannot be opened as a CLIP model with its processor: {error}"
        ) from error
    return CLIP(
        model,
        processor,
        model.config.text_config.max_position_embeddings,
        f"CLIP {path.name}, texts after {config.prefix!r}",
        weights,
    )
