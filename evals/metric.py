"""What a metric is. One file of evals/metrics/ registers a subclass; a user's own is named by its import path.

    check    settings alone                  before any file is read; also where results are there already
    applies  whether the data allow it       only of metrics=[auto] and while training
    read     files                           before the model is opened
    prepare  judge models, shared inputs     before anything is measured
    measure  the numbers
    write    what else the report reads of them

Every step raises UserError, with the key, its value and the remedy, for a user's mistake. Importing a metric's module
must import neither torch nor transformers: that is done in the methods that need them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evals.settings import EvalJob
from liquid_train.errors import UserError
from liquid_train.measurement.families import MetricFamily
from liquid_train.measurement.measurement import Measurement, ModelHandle

if TYPE_CHECKING:
    from evals.inputs import Inputs
    from evals.sets import EvalSets
    from liquid_train.training.settings import EvalsConfig


class Metric:
    """One metric of one evaluation.

    name: of its file evals/step-NNNNNNNN-NAME.json. config: of `liquid eval`; None while training.
    """

    version: ClassVar[int] = 1  # raised by whoever changes what is measured: older results are then measured again
    by_default: ClassVar[bool] = False  # one of metrics=[auto]
    draws: ClassVar[bool] = False  # measures inputs.generated
    reads: ClassVar[tuple[str, ...]] = ()  # which sets of EvalSets it reads: questions, captions, images, train
    needs: ClassVar[dict[str, str]] = {}  # keys without which it cannot be measured, and what their value is
    while_training: ClassVar[bool] = False  # measured by evals/periodic.py too; then for any number of ranks
    families: ClassVar[tuple[MetricFamily, ...]] = ()  # how its numbers are shown in the report
    files: ClassVar[tuple[str, ...]] = ()  # patterns of what `write` writes

    def __init__(self, name: str, config: EvalJob | None = None) -> None:
        self.name, self.config = name, config

    @property
    def job(self) -> EvalJob:
        """The settings of `liquid eval`."""
        assert self.config is not None, f"{self.name} is not measured while training"
        return self.config

    @property
    def own(self) -> dict[str, Any]:
        """The settings own.NAME of a metric that has no others."""
        return dict(self.job.own.get(self.name, {}))

    def not_given(self) -> list[str]:
        """Keys of `needs` without a value."""
        return [key for key in self.needs if value_of(self.job, key) in (None, "", [])]

    def check(self) -> None:
        """Whether the settings allow it."""
        for key in self.not_given():
            raise UserError(f"metrics: {self.name} needs {key}={self.needs[key]}")

    def applies(self, sets: EvalSets) -> None:
        """Raises NotMeasurable where the data do not allow it."""
        for kind in self.reads:
            sets.require(kind)
        if self.draws and self.config is not None and self.config.prompts is None:
            sets.require("captions")  # they become prompts

    def read(self) -> None:
        """Read its files."""

    def identity(self) -> Any:
        """Settings and files that decide its numbers, as JSON, besides the model, the sets and the sampler."""
        return self.own

    def prepare(self, inputs: Inputs) -> None:
        """Make what it needs of `inputs`, so that whatever is wrong is told before anything is measured."""

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        raise NotImplementedError(f"{type(self).__name__}.measure")

    def write(self, folder: Path, step: int | None, found: dict[str, Measurement], inputs: Inputs) -> None:
        """Write `files` into `folder`. found: every measurement of this evaluation by name."""

    def write_while_training(self, run_dir: Path, step: int, inputs: Inputs) -> None:
        """On rank 0, after it was measured: what else is kept in the run's folder."""

    def scores_files(self) -> str | None:
        """The key whose files hold what a model answered already, where it has a value: scored without a model."""
        return None

    def score(self) -> Measurement:
        """The numbers of those files. Torch-free."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    def wanted(self, settings: EvalsConfig) -> bool:
        """Whether the settings of a training ask for it."""
        return not self.draws or settings.quality_images > 0

    def images_wanted(self, settings: EvalsConfig) -> int:
        """Images that it measures while training."""
        return max(settings.images, settings.quality_images) if self.draws else 0


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key of nested dataclasses."""
    for part in key.split("."):
        config = getattr(config, part)
    return config
