"""Which image tokenizer, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from liquid_train.config.fields import Section, setting

TAMING = "taming"  # the kind that files without a kind mean
AUTO = "auto"  # of generation and evaluation: as the model was trained with


@dataclass
class VQSettings(Section):
    """`vq=NAME` chooses a group of conf/vq. `package:` paths lie inside the installed package."""

    config: Annotated[str, setting("taming: its yaml file", is_path=True)] = "package:weights/vq_easy/vqgan.yaml"
    checkpoint: Annotated[str, setting("taming: its weights, .ckpt or .safetensors", is_path=True)] = (
        "package:weights/vq_easy/model.safetensors"
    )
    kind: Annotated[
        str, setting("which kind of image tokenizer", kinds="liquid_train.image_tokenizer.kinds:IMAGE_TOKENIZERS")
    ] = TAMING
    options: Annotated[dict[str, Any], setting("arguments of an image tokenizer of your own")] = field(
        default_factory=dict
    )
