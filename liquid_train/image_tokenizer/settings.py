"""Which image tokenizer, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class VQSettings:
    """Where the image tokenizer's files are; `package:` paths lie inside the installed package."""

    config: str = "package:weights/vq_easy/vqgan.yaml"
    checkpoint: str = "package:weights/vq_easy/model.safetensors"
