"""Which image tokenizer, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from liquid_train.config.fields import Section, setting


@dataclass
class VQSettings(Section):
    """`vq=NAME` chooses a group of conf/vq. `package:` paths lie inside the installed package."""

    config: Annotated[str, setting("its yaml file", is_path=True)] = "package:weights/vq_easy/vqgan.yaml"
    checkpoint: Annotated[str, setting("its weights, .ckpt or .safetensors", is_path=True)] = (
        "package:weights/vq_easy/model.safetensors"
    )
