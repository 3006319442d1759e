"""Loss and token accuracy on the documents of the run's data.heldout (liquid_train/training/heldout.py)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evals.errors import NotMeasurable
from evals.inputs import Inputs, JobInputs
from evals.metric import Metric
from evals.metrics import METRICS
from evals.sets import EvalSets, training_config
from liquid_train.config.schema import TrainJob
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement, ModelHandle

if TYPE_CHECKING:
    from liquid_train.training.heldout import HeldoutSet


@METRICS.register("heldout")
class Heldout(Metric):
    """With the training's own code; while training it is logged as val/loss/TASK by that."""

    by_default = True

    def applies(self, sets: EvalSets) -> None:
        for name, source in self.training_config().data.heldout.items():
            try:
                ShardSet(source.path)
            except UserError as error:
                raise NotMeasurable(f"data.heldout.{name}.path={source.path}: {error}") from error

    def training_config(self) -> TrainJob:
        """The config whose data.heldout is measured. Raises NotMeasurable where no run has one."""
        where = self.job.heldout.run
        key = f"heldout.run={where}" if where is not None else f"checkpoint={self.job.checkpoint or self.job.watch}"
        found = training_config(self.job)
        if found is None:
            raise NotMeasurable(
                f"metrics: heldout needs a run's config, and {key} belongs to no run; give heldout.run=RUN"
            )
        if not found.data.heldout:
            raise NotMeasurable(
                f"metrics: heldout: {key}: its data.heldout names no sources; give heldout.run=RUN with another one"
            )
        return found

    def identity(self) -> Any:
        c = self.training_config()
        digests = {name: ShardSet(source.path).digest for name, source in c.data.heldout.items()}
        return [asdict(self.job.heldout), asdict(c.data), c.seed, c.train.micro_batch, digests]

    def prepare(self, inputs: Inputs) -> None:
        from liquid_train.training.heldout import heldout_set

        assert isinstance(inputs, JobInputs)
        where, session, trained = self.job.heldout, inputs.session, self.training_config()
        self.data: HeldoutSet = heldout_set(
            trained.data,
            trained.loss,
            trained.seed,
            session.vocabulary,
            session.card.vq_fingerprint,
            micro_batch=trained.train.micro_batch,
            whole=where.whole,
            batches=where.batches,
        )

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        from liquid_train.training.heldout import heldout

        return heldout(handle, self.data)
