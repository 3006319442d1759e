"""CLIPScore: how near an image and its text are in CLIP's space: 2.5 max(cos, 0) (Hessel et al. 2021, arXiv
2104.08718).

Next to it `clip_cosine`, the mean of the cosines themselves: torchmetrics' CLIPScore is 100 max(that, 0) with the bare
texts, so that it compares with 100 times this one where `clipscore.prefix` is empty.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.identity import folder_identity
from evals.inputs import Inputs, JobInputs
from evals.judges.images import Images
from evals.metric import Metric
from evals.metrics import METRICS
from evals.settings import CLIPScoreConfig
from liquid_train.measurement.measurement import Measurement, ModelHandle, average
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest

if TYPE_CHECKING:
    from evals.judges.clip import CLIP

WEIGHT = 2.5


@METRICS.register("clipscore")
class CLIPScore(Metric):
    """Of the generated images, by the model of clipscore.model."""

    draws = True
    needs = {"clipscore.model": "FOLDER with a CLIP model in Hugging Face format"}

    def identity(self) -> Any:
        return [asdict(self.job.clipscore), folder_identity(self.job.clipscore.model)]

    def prepare(self, inputs: Inputs) -> None:
        from evals.judges.clip import open_clip

        assert isinstance(inputs, JobInputs)
        self.clip = open_clip(self.job.clipscore, inputs.session.model.device)

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        return clipscore(handle, self.clip, Images.of(inputs.generated), self.job.clipscore, seed=inputs.seed)


def clipscore(handle: ModelHandle, clip: CLIP, data: Images, config: CLIPScoreConfig, *, seed: int = 0) -> Measurement:
    """clipscore (0 to 2.5) and clip_cosine (-1 to 1), means over all images; a collective."""
    own, texts = handle.own(len(data.texts)), [config.prefix + text for text in data.texts]
    found = np.zeros(len(texts))
    for start in range(0, len(own), config.batch_size):
        part = own[start : start + config.batch_size]
        found[part] = clip.cosines(data.pixels[part], [texts[n] for n in part])
        handle.progress("CLIPScore", start + len(part), len(own))
    found = handle.gathered(found)
    values = {"clipscore": average(WEIGHT * found.clip(min=0), seed), "clip_cosine": average(found, seed)}
    long = sum(map(clip.is_long, texts))
    provenance = Provenance(
        n=len(texts),
        prompts=texts_digest(texts),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        resize="CLIP's own processor",
        features=clip.name,
        feature_weights=clip.weights,
        dtype=handle.dtype,
    )
    return Measurement(
        values,
        provenance,
        warnings=[f"{long} of {len(texts)} texts are longer than CLIP's {clip.longest} tokens and were cut"]
        if long
        else [],
    )
