"""Self-VQAScore: the very model that is measured says how well an image fits a text. No second model is needed.

    P(answer | image, question with the text in it)        VQAScore (Lin et al. 2024), with the drawing model as the
                                                             judge

or, where the config takes texts apart, by the answers to questions about their parts (evals/metrics/caption_parts.py).
A model may be wrong about its own images in the way it drew them wrong: next to the score stands how well it tells
right captions of real images from wrong ones (area under the ROC curve), by which the score can be trusted or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.metrics.answer_probability import answer_probabilities
from evals.metrics.caption_parts import described, joined, questions_about, unmatched
from liquid_train.measurement.intervals import bootstrap, bootstrap_name
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, average
from liquid_train.measurement.provenance import Provenance, arrays_digest, seeds_text, texts_digest
from liquid_train.measurement.settings import VQAScoreConfig

RESAMPLES = 500


@dataclass(frozen=True)
class GeneratedTexts:
    """codes: one grid an image; texts: what each was drawn from; tags: what skills each text asks for (may be
    empty)."""

    codes: Sequence[np.ndarray]
    texts: list[str]
    tags: list[list[str]]
    seeds: list[int]
    sampler: dict[str, float | int | None]


@dataclass(frozen=True)
class CaptionPairs:
    """codes: one grid a real image; cases: by name, a right and a wrong caption of each image."""

    codes: Sequence[np.ndarray]
    cases: dict[str, tuple[list[str], list[str]]]


def scores(
    handle: ModelHandle, codes: Sequence[np.ndarray], texts: Sequence[Sequence[str]], config: VQAScoreConfig, what: str
) -> np.ndarray:
    """How well each image fits each of its texts, fp64 [images, texts of one]; a collective. texts: as many for
    every image.

    What several texts ask about one image is asked once.
    """
    asked = {(n, k): questions_about(text, config) for n in handle.own(len(codes)) for k, text in enumerate(texts[n])}
    answers: dict[tuple[int, str], list[str]] = {}
    for (n, _), questions in asked.items():
        for question, answer in questions:
            wanted = answers.setdefault((n, question), [])
            if answer not in wanted:
                wanted.append(answer)
    items = [(codes[n], question, wanted) for (n, question), wanted in answers.items()]
    chances = answer_probabilities(
        handle.model,
        handle.vocabulary,
        items,
        batch_size=config.batch_size,
        progress=lambda *p: handle.progress(what, *p),
    )
    known = {item: dict(zip(answers[item], row, strict=True)) for item, row in zip(answers, chances, strict=True)}
    found = np.zeros((len(codes), len(texts[0])))
    for (n, k), questions in asked.items():
        found[n, k] = joined(known[n, question][answer] for question, answer in questions)
    return handle.gathered(found)


def score_generated(handle: ModelHandle, data: GeneratedTexts, config: VQAScoreConfig, *, seed: int = 0) -> Measurement:
    """self_vqascore over all generated images, and self_vqascore/TAG over those whose text has the tag."""
    found = scores(handle, data.codes, [[text] for text in data.texts], config, "self-VQAScore")[:, 0]
    values = {"self_vqascore": average(found, seed)}
    for tag in sorted({t for tags in data.tags for t in tags}):
        values[f"self_vqascore/{tag}"] = average(found[[tag in tags for tags in data.tags]], seed)
    provenance = Provenance(
        n=len(data.texts),
        prompts=texts_digest(data.texts),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        features=judge(config),
        dtype=handle.dtype,
    )
    return Measurement(values, provenance, warnings=unmatched(data.texts, config))


def tell_captions(handle: ModelHandle, data: CaptionPairs, config: VQAScoreConfig, *, seed: int = 0) -> Measurement:
    """Of each case: caption_auc/CASE, how often a right caption of a real image scores above a wrong one (0.5 is
    chance), and the mean scores of both."""
    values: dict[str, Value] = {}
    columns = [texts for captions in data.cases.values() for texts in captions]
    found = scores(handle, data.codes, list(zip(*columns, strict=True)), config, "captions")
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
        features=judge(config),
        dtype=handle.dtype,
    )
    return Measurement(values, provenance, warnings=unmatched(texts, config))


def judge(config: VQAScoreConfig) -> str:
    """As provenance name it."""
    return f"the measured model itself: {described(config)}"


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
