"""VQAScore of the generated images, by another model (evals/judges/vqa_model.py)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from evals.identity import folder_identity
from evals.inputs import Inputs, JobInputs
from evals.judges.images import Images
from evals.metric import Metric
from evals.metrics import METRICS
from evals.settings import JudgeConfig
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement, ModelHandle, average
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest

if TYPE_CHECKING:
    from evals.judges.vqa_model import Judge

WHAT = "a visual question answering model in Hugging Face format"


@METRICS.register("vqascore")
class VQAScore(Metric):
    """Of the generated images, by the model of vqascore.model."""

    draws = True
    needs: ClassVar[dict[str, str]] = {"vqascore.model": f"FOLDER with {WHAT}"}

    def check(self) -> None:
        super().check()
        if self.job.vqascore.pattern is not None:
            raise UserError(f"vqascore.pattern: {self.name} asks about whole texts only; leave one of them out")

    def identity(self) -> Any:
        return [asdict(self.job.vqascore), folder_identity(self.job.vqascore.model)]

    def prepare(self, inputs: Inputs) -> None:
        assert isinstance(inputs, JobInputs)
        _ = inputs.judge

    def images(self, inputs: JobInputs) -> Images:
        """What is judged."""
        return Images.of(inputs.generated)

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        assert isinstance(inputs, JobInputs)
        return vqascore(handle, inputs.judge, self.images(inputs), self.job.vqascore, name=self.name, seed=inputs.seed)


def vqascore(
    handle: ModelHandle, judge: Judge, data: Images, config: JudgeConfig, *, name: str = "vqascore", seed: int = 0
) -> Measurement:
    """NAME over all images, and NAME/TAG over those whose text has the tag; a collective."""
    from evals.judges.vqa_model import asked

    own = handle.own(len(data.texts))
    found = np.zeros(len(data.texts))
    for numbers, chances in asked(judge, data, config, own, lambda done: handle.progress(name, done, len(own))):
        found[numbers] = chances
    found = handle.gathered(found)
    values = {name: average(found, seed)}
    for tag in sorted({t for tags in data.tags for t in tags}):
        values[f"{name}/{tag}"] = average(found[[tag in tags for tags in data.tags]], seed)
    provenance = Provenance(
        n=len(data.texts),
        prompts=texts_digest(data.texts),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        resize="the judge's own processor",
        features=judge.name,
        feature_weights=judge.weights,
        dtype=handle.dtype,
    )
    return Measurement(values, provenance)
