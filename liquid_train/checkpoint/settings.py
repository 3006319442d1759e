"""When checkpoints are written, which are kept, what is resumed from: settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from liquid_train.config.fields import Section, require, setting


@dataclass
class CheckpointConfig(Section):
    """Checkpoints of a run."""

    every: Annotated[int, setting("steps between checkpoints", ge=1)] = 500
    async_save: Annotated[
        bool, setting("written while training goes on, from a copy in the host's memory; false: training waits")
    ] = True
    keep: Annotated[int, setting("how many of the newest are kept, and the best one as well", ge=1)] = 2
    keep_every: Annotated[
        int | None, setting("those of every N-th step are kept for good", ge=1, null="none of them")
    ] = None
    best: Annotated[
        str | None,
        setting(
            "name in metrics.jsonl that the best one is best by, such as eval/vqa_accuracy", null="there is no best one"
        ),
    ] = None
    best_is: Annotated[Literal["highest", "lowest"], setting("which of its values is best")] = "highest"
    shard_gib: Annotated[
        float, setting("GiB of one safetensors file of model/: what a rank holds in memory, at most, to write it", gt=0)
    ] = 5.0
    resume: Annotated[
        str,
        setting(
            "what training starts from: auto (the run's newest checkpoint), none, or a checkpoint's folder",
            is_path=True,
        ),
    ] = "auto"

    def check(self, key: str) -> None:
        require(
            self.best is None or self.best.startswith(("eval/", "val/")),
            f"{key}best={self.best}: give a number of metrics.jsonl, such as eval/vqa_accuracy or val/loss/t2i",
        )
