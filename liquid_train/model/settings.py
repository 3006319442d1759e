"""The language model and its loss: settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from liquid_train.config.fields import Section, require, setting


@dataclass
class BackboneConfig(Section):
    """`backbone=NAME` chooses a group of conf/backbone."""

    path: Annotated[
        str | None,
        setting(
            "folder in Hugging Face format (weights, config, tokenizer)", null="built from `architecture`", is_path=True
        ),
    ] = None
    init: Annotated[Literal["random", "pretrained"], setting("first weights; pretrained needs backbone.path")] = (
        "random"
    )
    architecture: Annotated[
        dict[str, Any],
        setting(
            "transformers' config: model_type and its fields; vocab_size: embedding rows before the image codes, "
            "null: as "
            "many as the tokenizer has entries"
        ),
    ] = field(default_factory=dict)
    tokenizer: Annotated[
        str | None,
        setting(
            "folder with a tokenizer in Hugging Face format",
            null="that of backbone.path, or a BPE trained on the training text",
            is_path=True,
        ),
    ] = None
    tokenizer_size: Annotated[
        int, setting("entries of that BPE, 256 bytes and 6 special tokens among them", ge=262, le=10**6)
    ] = 1024
    special_tokens: Annotated[
        list[str] | None,
        setting(
            "three unused tokenizer entries that become <boi>, <eoi>, <unconditional>",
            null="those known for the family",
            min_length=3,
            max_length=3,
        ),
    ] = None
    family: Annotated[
        str | None,
        setting(
            "what is special about the architecture",
            null="by its model_type",
            kinds="liquid_train.model.families:FAMILIES",
        ),
    ] = None
    unproven: Annotated[
        bool,
        setting(
            "train an architecture also where a small copy of it does not compute here what transformers does (packed "
            "documents, loss, gradients, decoding)"
        ),
    ] = False
    image_init: Annotated[
        Literal["mean", "normal", "codebook"],
        setting("image rows of a pretrained model: mean of the text rows, normal, or the image tokenizer's codebook"),
    ] = "mean"

    def check(self, key: str) -> None:
        require(
            self.image_init == "mean" or self.init == "pretrained",
            f"{key}image_init={self.image_init} needs {key}init=pretrained and {key}path=FOLDER: with init={self.init} "
            "every row is random",
        )
        require(
            self.tokenizer is None or (Path(self.tokenizer) / "tokenizer.json").is_file(),
            f"{key}tokenizer={self.tokenizer}: no tokenizer.json there; give a folder in Hugging Face format",
        )
        if self.path is None:
            require(
                "model_type" in self.architecture,
                f"{key}architecture.model_type has no value; choose backbone=tiny or give {key}path=FOLDER",
            )
        else:
            require(
                (Path(self.path) / "config.json").is_file(),
                f"{key}path={self.path}: no config.json there; give a folder in Hugging Face format",
            )


@dataclass
class LossConfig(Section):
    """What counts how much."""

    weight: Annotated[
        dict[str, Annotated[float, setting("weight of a task", ge=0, le=1e6)]],
        setting("weight of each task's targets, loss.weight.TASK; a task that is not named counts 1"),
    ] = field(default_factory=dict)
    normalize: Annotated[
        Literal["token", "document", "sqrt"], setting("how much a long document counts: by token, once, or in between")
    ] = "token"
    chunk: Annotated[int, setting("target positions whose logits exist at the same time", ge=1)] = 1024
    z_loss: Annotated[
        float, setting("weight of the squared log-partition (PaLM, arXiv 2204.02311); 0: none", ge=0, le=10)
    ] = 0.0
    router: Annotated[
        float | None,
        setting(
            "weight of the load-balancing loss of a mixture of experts (arXiv 2101.03961); 0: none",
            null="the model's own router_aux_loss_coef",
            ge=0,
            le=10,
        ),
    ] = None
