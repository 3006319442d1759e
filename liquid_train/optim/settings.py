"""Optimizer and learning rate: settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from liquid_train.config.fields import Section, require, setting


@dataclass
class OptimizerConfig(Section):
    """`optimizer=NAME` chooses a group of conf/optimizer."""

    kind_settings = ("betas", "eps")

    kind: Annotated[str, setting("which optimizer", kinds="liquid_train.optim.kinds:OPTIMIZERS")] = "adamw"
    lr: Annotated[float, setting("peak learning rate", gt=0, le=100)] = 3e-3
    weight_decay: Annotated[float, setting("decay of matrices; vectors (norms, biases) have none", ge=0)] = 0.1
    betas: Annotated[
        list[Annotated[float, setting("a decay rate", ge=0, lt=1)]],
        setting("decay rates of Adam's two moments", min_length=2, max_length=2),
    ] = field(default_factory=lambda: [0.9, 0.95])
    eps: Annotated[float, setting("added to the root of the second moment", gt=0, le=1)] = 1e-8
    grad_clip: Annotated[float, setting("norm that gradients are clipped to", gt=0)] = 1.0
    image_embedding_lr_scale: Annotated[
        float, setting("learning rate of the image rows of embedding and head, relative to lr", ge=0, le=1000)
    ] = 1.0
    new_rows_steps: Annotated[
        int, setting("length of a first stage that trains only the rows that a published checkpoint lacks", ge=0)
    ] = 0
    options: Annotated[dict[str, Any], setting("arguments of an optimizer of your own")] = field(default_factory=dict)

    def check(self, key: str) -> None:
        require(
            "." in self.kind or self.lr * self.weight_decay <= 1,
            f"{key}weight_decay={self.weight_decay}: times {key}lr={self.lr} it takes away more than the whole weight "
            "at each step; lower one of them",
        )


@dataclass
class ScheduleConfig(Section):
    """`schedule=NAME` chooses a group of conf/schedule."""

    kind: Annotated[Literal["cosine", "constant", "wsd"], setting("shape of the learning rate over the run")] = "cosine"
    warmup: Annotated[float, setting("share of the steps, or their number from 1 on", ge=0)] = 0.03
    decay: Annotated[float, setting("wsd: share of the steps at the end, or their number from 1 on", ge=0)] = 0.2
    min_lr: Annotated[float, setting("where the learning rate ends, as a share of optimizer.lr", ge=0, le=1)] = 0.0

    def check(self, key: str) -> None:
        if self.kind == "wsd" and self.warmup < 1 and self.decay < 1:
            require(
                self.warmup + self.decay <= 1,
                f"{key}warmup={self.warmup} and {key}decay={self.decay}: more than the whole run together; "
                "lower one of them",
            )
