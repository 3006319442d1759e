"""The language model and its loss: settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class BackboneConfig:
    path: str | None = None  # a folder in HF format (weights, config, tokenizer); None = built from `architecture`
    init: str = "random"  # pretrained (needs path) or random
    # transformers config: model_type and its fields; vocab_size: embedding rows before the codes, None = as many as
    # tokenizer entries
    architecture: dict[str, Any] = field(default_factory=dict)
    # a folder with a tokenizer in HF format; None = that of `path`, or a BPE trained on the training text
    tokenizer: str | None = None
    tokenizer_size: int = 1024  # entries of that BPE
    special_tokens: list[str] | None = None  # three unused tokenizer entries that become <boi>, <eoi>, <unconditional>
    # image rows of a pretrained model: mean (of the text rows), normal, or codebook (the VQ's, projected)
    image_init: str = "mean"


@dataclass
class LossConfig:
    weight: dict[str, float] = field(default_factory=dict)  # a task that is not named counts 1
    normalize: str = "token"  # token, document or sqrt: how much a long document counts
    chunk: int = 1024  # target positions whose logits exist at the same time
    z_loss: float = 0.0
