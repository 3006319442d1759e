"""The training config: the sections of the modules that they configure, put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from liquid_train.checkpoint.settings import CheckpointConfig
from liquid_train.data.settings import DataConfig
from liquid_train.distributed.settings import LaunchConfig, ParallelConfig
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.model.settings import BackboneConfig, LossConfig
from liquid_train.optim.settings import OptimizerConfig, ScheduleConfig
from liquid_train.training.settings import EvalsConfig, RunConfig, TrackerConfig, TrainConfig


@dataclass
class TrainJob:
    """Everything `liquid train` reads."""

    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    vq: VQSettings = field(default_factory=VQSettings)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evals: EvalsConfig = field(default_factory=EvalsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


@dataclass
class PlanJob(TrainJob):
    """Everything `liquid plan` reads: a training config, of which it uses backbone, vq.config, parallel and launch."""

    format: str = "table"  # table or json
