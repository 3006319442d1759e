"""Which image tokenizer, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TAMING = "taming"  # the kind that files without a kind mean
AUTO = "auto"  # of generation and evaluation: as the model was trained with


@dataclass
class VQSettings:
    """Which image tokenizer; `package:` paths lie inside the installed package."""

    config: str = "package:weights/vq_easy/vqgan.yaml"  # taming: its yaml
    checkpoint: str = "package:weights/vq_easy/model.safetensors"  # taming: its .ckpt or .safetensors
    kind: str = TAMING  # a file of liquid_train/image_tokenizer/kinds, or the import path of a class of your own
    options: dict[str, Any] = field(default_factory=dict)  # what a class of your own is made with
