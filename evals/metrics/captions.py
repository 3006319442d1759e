"""How well the measured model tells right captions of real images from wrong ones: area under the ROC curve.

By this the self-VQAScore can be trusted or not: a model may be wrong about its own images in the way it drew them
wrong. Wrong captions are those of other images; of easy-VQA, ones that are wrong in the colour or in the shape.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.inputs import Inputs
from evals.judges import self_judge
from evals.judges.caption_pairs import CaptionPairs
from evals.judges.caption_parts import unmatched
from evals.metric import Metric
from evals.metrics import METRICS
from liquid_train.measurement.intervals import bootstrap, bootstrap_name
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, average
from liquid_train.measurement.provenance import Provenance, arrays_digest, texts_digest
from liquid_train.measurement.settings import VQAScoreConfig

if TYPE_CHECKING:
    from liquid_train.training.settings import EvalsConfig

RESAMPLES = 500


@METRICS.register("captions")
class Captions(Metric):
    """Right from wrong captions."""

    by_default = True
    reads = ("captions",)
    while_training = True

    def identity(self) -> Any:
        return [self.job.caption_images, asdict(self.job.vqascore)]

    def prepare(self, inputs: Inputs) -> None:
        _ = inputs.pairs

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        return tell_captions(handle, inputs.pairs, inputs.vqascore, seed=inputs.seed)

    def wanted(self, settings: EvalsConfig) -> bool:
        return settings.caption_images > 0


def tell_captions(handle: ModelHandle, data: CaptionPairs, config: VQAScoreConfig, *, seed: int = 0) -> Measurement:
    """Of each case: caption_auc/CASE, how often a right caption of a real image scores above a wrong one (0.5 is
    chance), and the mean scores of both."""
    values: dict[str, Value] = {}
    columns = [texts for captions in data.cases.values() for texts in captions]
    found = self_judge.scores(handle, data.codes, list(zip(*columns, strict=True)), config, "captions")
    for i, case in enumerate(data.cases):
        right, wrong = found[:, 2 * i], found[:, 2 * i + 1]
        values[f"caption_auc/{case}"] = area_value(right, wrong, seed)
        values[f"self_vqascore_right/{case}"], values[f"self_vqascore_wrong/{case}"] = (
            average(right, seed),
            average(wrong, seed),
        )
    texts = [text for column in columns for text in column]
    provenance = Provenance(
        n=len(data.codes),
        data=arrays_digest(data.codes),
        prompts=texts_digest(texts),
        sampler={"greedy": None},
        features=self_judge.judge_name(config),
        dtype=handle.dtype,
    )
    return Measurement(values, provenance, warnings=unmatched(texts, config))


def area_value(right: np.ndarray, wrong: np.ndarray, seed: int) -> Value:
    """The area with its interval; an image's right and wrong caption are resampled together."""
    low, high = bootstrap(len(right), lambda picked: area(right[picked], wrong[picked]), seed=seed, resamples=RESAMPLES)
    return Value(area(right, wrong), len(right), low, high, bootstrap_name(RESAMPLES, seed))


def area(right: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the ROC curve: share of all pairs in which the right one is higher, ties counting half (Mann and
    Whitney 1947)."""
    others = np.sort(wrong)
    below, not_above = (np.searchsorted(others, right, side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(right) * len(wrong)))
