"""The training config: the sections of the modules that they configure, put together, and what must hold between
them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from liquid_train.checkpoint.settings import CheckpointConfig
from liquid_train.config.fields import Section, require, setting
from liquid_train.config.log_settings import LogConfig
from liquid_train.data.settings import DataConfig
from liquid_train.data.tasks import IMAGE, find_task, task_names
from liquid_train.distributed.settings import LaunchConfig, ParallelConfig
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.model.families import find_family
from liquid_train.model.settings import BackboneConfig, LossConfig
from liquid_train.optim.kinds import check_own_kind
from liquid_train.optim.settings import OptimizerConfig, ScheduleConfig
from liquid_train.training.settings import EvalsConfig, RunConfig, TrackerConfig, TrainConfig


@dataclass
class TrainJob(Section):
    """Train a backbone on a mixture of shard sets, on any number of ranks; called again, go on where it was."""

    seed: Annotated[int, setting("decides first weights and the order of data", ge=0, le=2**63 - 1)] = 0
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
    log: LogConfig = field(default_factory=LogConfig)

    def check(self, key: str) -> None:
        c = self
        require(
            bool(c.data.sources),
            "data.sources is empty; choose a mixture with data=NAME or an experiment with experiment=NAME, or name "
            "shard "
            "sets: data.sources.NAME.path=FOLDER data.sources.NAME.task=text",
        )
        require(
            c.train.steps is not None or c.train.tokens is not None,
            "train.steps has no value; give train.steps=N or train.tokens=N",
        )
        require(
            c.backbone.init == "random" or c.backbone.path is not None,
            "backbone.init=pretrained needs backbone.path=FOLDER with an HF model",
        )
        require(
            c.optimizer.new_rows_steps == 0 or c.backbone.init == "pretrained",
            f"optimizer.new_rows_steps={c.optimizer.new_rows_steps} needs backbone.init=pretrained: with "
            "init=random all rows are new",
        )
        check_own_kind(c.optimizer)
        if c.backbone.family is not None:
            find_family(c.backbone.family, "backbone.family")
        known = list(dict.fromkeys([*task_names(c.data), IMAGE]))  # its weight may stay where data.image_loss is off
        tasks = sorted(
            {find_task(s.task, f"data.sources.{n}.task").name for n, s in c.data.sources.items() if s.weight > 0}
        )
        for task in c.loss.weight:
            require(task in known, f"loss.weight.{task}: no such task; one of {', '.join(known)}")
        require(
            any(c.loss.weight.get(task, 1.0) > 0 for task in tasks),
            f"loss.weight: the weight of every task of data.sources is 0 ({', '.join(tasks)}); give one of them a "
            "positive weight",
        )
        tensor = c.parallel.tensor if c.parallel.sequence else 1
        require(
            c.data.seq_len % tensor == 0,
            f"data.seq_len={c.data.seq_len}: must be a multiple of parallel.tensor={tensor}, whose ranks share every "
            "sequence; or give parallel.sequence=false",
        )
        if c.checkpoint.best is not None:
            require(
                c.evals.every > 0 and c.checkpoint.every % c.evals.every == 0,
                f"checkpoint.best={c.checkpoint.best} needs checkpoint.every={c.checkpoint.every} to be a multiple of "
                f"evals.every={c.evals.every}, when it is measured",
            )


@dataclass
class PlanJob(TrainJob):
    """Parameters, and bytes of one rank, of a training config; backbone, vq.config, parallel and launch are used."""

    format: Annotated[Literal["table", "json"], setting("how the plan is printed")] = "table"

    def check(self, key: str) -> None:
        """A plan needs neither data nor a length."""
