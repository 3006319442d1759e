"""CLIPScore: how near an image and its text are in CLIP's space: 2.5 max(cos, 0) (Hessel et al. 2021, arXiv
2104.08718).

Next to it `clip_cosine`, the mean of the cosines themselves: torchmetrics' CLIPScore is 100 max(that, 0) with the bare
texts, so that it compares with 100 times this one where `clipscore.prefix` is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from evals.distances.features import folder_weights
from evals.metrics.vqascore import Images
from evals.settings import CLIPScoreConfig
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement, ModelHandle, average
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest

WEIGHT = 2.5


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


def clipscore(handle: ModelHandle, clip: CLIP, data: Images, config: CLIPScoreConfig, *, seed: int = 0) -> Measurement:
    """clipscore (0 to 2.5) and clip_cosine (-1 to 1), means over all images; a collective."""
    own, texts = handle.own(len(data.texts)), [config.prefix + text for text in data.texts]
    found = np.zeros(len(texts))
    for start in range(0, len(own), config.batch_size):
        part = own[start : start + config.batch_size]
        found[part] = clip.cosines(data.pixels[part], [texts[n] for n in part])
        handle.progress("CLIPScore", start + len(part), len(own))
    found = handle.gathered(found)
    values = {"clipscore": average(WEIGHT * found.clip(min=0), seed), "clip_cosine": average(found, seed)}
    long = sum(map(clip.is_long, texts))
    provenance = Provenance(
        n=len(texts),
        prompts=texts_digest(texts),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        resize="CLIP's own processor",
        features=clip.name,
        feature_weights=clip.weights,
        dtype=handle.dtype,
    )
    return Measurement(
        values,
        provenance,
        warnings=[f"{long} of {len(texts)} texts are longer than CLIP's {clip.longest} tokens and were cut"]
        if long
        else [],
    )
