"""When checkpoints are written, which are kept, what is resumed from: settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CheckpointConfig:
    every: int = 500
    async_save: bool = True  # written next to the training, from a copy in the CPU's memory; false: training waits
    keep: int = 2  # newest ones, and the best one besides
    keep_every: int | None = None  # those of every so many steps are kept for good
    best: str | None = None  # the number of metrics.jsonl that the best one is best by, such as eval/vqa_accuracy
    best_is: str = "highest"  # highest or lowest
    shard_gib: float = 5.0  # GiB of one safetensors file of model/: what a rank holds in memory, at most, to write it
    resume: str = "auto"  # auto, none, or the path of a checkpoint
