"""The training loop, what it logs and what it measures: settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from liquid_train.config.fields import Section, require, setting
from liquid_train.measurement.settings import FeaturesConfig, LanguageConfig, VQAScoreConfig


@dataclass
class RunConfig(Section):
    """Where a run lives: the same on every rank and at every restart, so there is no time stamp in it."""

    name: Annotated[str, setting("the run's name, also in W&B", min_length=1)] = "default"
    dir: Annotated[str, setting("its folder", is_path=True)] = "runs/${run.name}"

    def check(self, key: str) -> None:
        parts = self.name.split("/")
        require(not {"", ".", ".."} & set(parts), f"{key}name={self.name}: not a name; its default folder is runs/NAME")


@dataclass
class SpikeConfig(Section):
    """What is done about a step whose loss lies far above that of the last ones (training/spikes.py)."""

    action: Annotated[
        Literal["warn", "skip", "rewind"],
        setting(
            "warn: count it; skip: no optimizer step; rewind: back to the newest checkpoint, and past the spike's data"
        ),
    ] = "warn"
    threshold: Annotated[float, setting("robust standard deviations above the median", gt=0)] = 6.0
    window: Annotated[
        int, setting("steps that these are taken from; none is a spike before half of them are known", ge=4)
    ] = 128
    rewinds: Annotated[int, setting("how often training may go back; the next spike ends the run", ge=1)] = 3


@dataclass
class TrainConfig(Section):
    """Length and pace."""

    steps: Annotated[
        int | None, setting("optimizer steps; or give train.tokens", ge=1, null="train.tokens decides")
    ] = None
    tokens: Annotated[int | None, setting("length in tokens instead of steps", ge=1, null="train.steps decides")] = None
    micro_batch: Annotated[int, setting("sequences per rank and forward pass", ge=1)] = 4
    deterministic: Annotated[bool, setting("bit-equal results from run to run, on the same number of ranks")] = False
    batch_digest: Annotated[bool, setting("log a digest of every global batch")] = False
    max_skipped: Annotated[
        int, setting("steps in a row that may be left out (not finite, or spikes) before the run ends", ge=1)
    ] = 10
    hang_timeout: Annotated[
        float | None,
        setting(
            "seconds without progress after which a rank reports where it hangs, and ends", ge=1, le=1e6, null="never"
        ),
    ] = 1800.0
    time_limit: Annotated[
        float | None,
        setting(
            "seconds after which training has saved and ended; the same command goes on",
            gt=0,
            le=1e9,
            null="the end of the Slurm job, where there is one",
        ),
    ] = None
    profile_steps: Annotated[list[int] | None, setting("[first, last]: steps to profile", null="none")] = None
    spike: SpikeConfig = field(default_factory=SpikeConfig)

    def check(self, key: str) -> None:
        require(
            self.steps is None or self.tokens is None,
            f"{key}steps={self.steps} and {key}tokens={self.tokens}: give one of them, and null for the other",
        )
        steps = self.profile_steps
        require(
            steps is None or (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
            f"{key}profile_steps={steps}: give the first and the last step to profile, such as [10,12]",
        )


@dataclass
class WandbConfig(Section):
    """Weights & Biases."""

    mode: Annotated[Literal["online", "offline", "disabled"], setting("where metrics go besides metrics.jsonl")] = (
        "offline"
    )
    project: Annotated[str, setting("the project there")] = "liquid"


@dataclass
class TrackerConfig(Section):
    """What is logged."""

    every: Annotated[int, setting("steps between lines of metrics.jsonl", ge=1)] = 1
    wandb: WandbConfig = field(default_factory=WandbConfig)
    progress: Annotated[bool, setting("a progress bar, or progress lines where there is no terminal")] = True


@dataclass
class EvalsConfig(Section):
    """Evaluation while training; `evals=NAME` chooses a group of conf/evals."""

    every: Annotated[int, setting("steps between evaluations; 0: none", ge=0)] = 0
    metrics: Annotated[
        list[str],
        setting("names, or import paths of your own; auto: all that can be measured and that the held-out data allow"),
    ] = field(default_factory=lambda: ["auto"])
    periods: Annotated[
        dict[str, Annotated[int, setting("steps", ge=1)]],
        setting("steps between measurements of metrics that cost more, evals.periods.METRIC; the others: each time"),
    ] = field(default_factory=dict)
    vqa_samples: Annotated[int, setting("images whose questions are asked; 0: none", ge=0)] = 100
    images: Annotated[int, setting("images of the grid; 0: none", ge=0)] = 12
    prompts: Annotated[list[str], setting("what they are generated from; none: captions of the held-out set")] = field(
        default_factory=list
    )
    guidance: Annotated[float, setting("classifier-free guidance; 1: none", ge=0, le=1000)] = 3.0
    top_k: Annotated[int | None, setting("only the k likeliest codes", ge=1, null="all")] = None
    temperature: Annotated[float, setting("of sampling; 0: greedy", ge=0, le=1000)] = 0.8
    quality_images: Annotated[
        int, setting("images whose distance from real ones is measured, the grid's among them; 0: no distances", ge=0)
    ] = 0
    quality_reference: Annotated[int, setting("held-out images they are compared with", ge=2)] = 256
    caption_images: Annotated[
        int, setting("held-out images whose right and wrong captions the model is asked about; 0: none", ge=0)
    ] = 0
    weights: Annotated[
        Literal["auto", "whole", "sharded"],
        setting(
            "whether every rank holds the whole model while it measures, in the compute type, or gathers a block "
            "at a time, which is slow; auto: whole where there is room for it on every rank"
        ),
    ] = "auto"
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    vqascore: VQAScoreConfig = field(default_factory=VQAScoreConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def check(self, key: str) -> None:
        for name, period in self.periods.items():
            require(
                self.every > 0 and period % self.every == 0,
                f"{key}periods.{name}={period}: must be a multiple of {key}every={self.every}, when evaluations are "
                "made",
            )
