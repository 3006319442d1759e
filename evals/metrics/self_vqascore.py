"""Self-VQAScore: the very model that is measured says how well its images fit their prompts (evals/judges/
self_judge.py). How far that can be trusted the metric `captions` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.generated import GeneratedImages
from evals.inputs import Inputs
from evals.judges import self_judge
from evals.judges.caption_parts import unmatched
from evals.metric import Metric
from evals.metrics import METRICS
from liquid_train.measurement.measurement import Measurement, ModelHandle, average
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest
from liquid_train.measurement.settings import VQAScoreConfig


@METRICS.register("self_vqascore")
class SelfVQAScore(Metric):
    """The measured model's own judgement of its images."""

    by_default = True
    draws = True
    while_training = True

    def identity(self) -> Any:
        return asdict(self.job.vqascore)

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        return score_generated(handle, generated_texts(inputs.generated), inputs.vqascore, seed=inputs.seed)


@dataclass(frozen=True)
class GeneratedTexts:
    """codes: one grid an image; texts: what each was drawn from; tags: what skills each text asks for (may be
    empty)."""

    codes: Sequence[np.ndarray]
    texts: list[str]
    tags: list[list[str]]
    seeds: list[int]
    sampler: dict[str, float | int | None]


def generated_texts(generated: GeneratedImages, tags: list[list[str]] | None = None) -> GeneratedTexts:
    """What is judged: the codes as they were generated, without the way through pixels."""
    no_tags: list[list[str]] = [[] for _ in generated.prompts]
    return GeneratedTexts(list(generated.codes), generated.prompts, tags or no_tags, generated.seeds, generated.sampler)


def score_generated(handle: ModelHandle, data: GeneratedTexts, config: VQAScoreConfig, *, seed: int = 0) -> Measurement:
    """self_vqascore over all generated images, and self_vqascore/TAG over those whose text has the tag."""
    found = self_judge.scores(handle, data.codes, [[text] for text in data.texts], config, "self-VQAScore")[:, 0]
    values = {"self_vqascore": average(found, seed)}
    for tag in sorted({t for tags in data.tags for t in tags}):
        values[f"self_vqascore/{tag}"] = average(found[[tag in tags for tags in data.tags]], seed)
    provenance = Provenance(
        n=len(data.texts),
        prompts=texts_digest(data.texts),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        features=self_judge.judge_name(config),
        dtype=handle.dtype,
    )
    return Measurement(values, provenance, warnings=unmatched(data.texts, config))
