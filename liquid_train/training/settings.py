"""The training loop, what it logs and what it measures: settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from liquid_train.measurement.settings import FeaturesConfig, LanguageConfig, VQAScoreConfig


@dataclass
class RunConfig:
    name: str = "default"
    dir: str = "runs/${run.name}"  # the same on every rank: no time stamp in it


@dataclass
class SpikeConfig:
    """What is done about a step whose loss lies far above the last ones' (spike_guard.py)."""

    # warn: count it; skip: no optimizer step; rewind: back to the newest checkpoint, on after the spike's data
    action: str = "warn"
    threshold: float = 6.0  # robust standard deviations above the median
    window: int = 128  # steps that these are taken from; none is a spike before half of them are known
    rewinds: int = 3  # the next spike ends the run


@dataclass
class TrainConfig:
    steps: int | None = None
    tokens: int | None = None  # length in tokens instead of steps
    micro_batch: int = 4  # sequences per rank and forward pass
    deterministic: bool = False
    batch_digest: bool = False
    max_skipped: int = 10  # non-finite steps, or skipped spikes, in a row before the run stops
    # seconds without progress after which a rank says where it hangs, and ends; null = never
    hang_timeout: float | None = 1800.0
    profile_steps: list[int] | None = None  # [first, last]: these steps are profiled
    spike: SpikeConfig = field(default_factory=SpikeConfig)


@dataclass
class WandbConfig:
    mode: str = "offline"  # online, offline or disabled
    project: str = "liquid"


@dataclass
class TrackerConfig:
    every: int = 1
    wandb: WandbConfig = field(default_factory=WandbConfig)
    progress: bool = True


# what is measured while training: evals/periodic.py
PERIODIC = ("vqa", "grid", "image_quality", "self_vqascore", "captions", "language")


@dataclass
class EvalsConfig:
    every: int = 0  # steps between evaluations while training; 0 = never
    # names, or import paths of one's own; auto: all that can be measured while training and that the data allow
    metrics: list[str] = field(default_factory=lambda: ["auto"])
    # steps between measurements of those that cost more; the others: each time
    periods: dict[str, int] = field(default_factory=dict)
    vqa_samples: int = 100  # images of the periodic VQA accuracy
    images: int = 12  # images of the periodic grid
    prompts: list[str] = field(default_factory=list)
    guidance: float = 3.0
    top_k: int | None = None
    temperature: float = 0.8
    # images whose distance from real ones is measured, the grid's among them; 0 = no distances
    quality_images: int = 0
    quality_reference: int = 256  # real images they are compared with
    caption_images: int = 0  # real images whose right and wrong captions the model is asked about
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    vqascore: VQAScoreConfig = field(default_factory=VQAScoreConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
