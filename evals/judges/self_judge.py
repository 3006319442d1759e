"""The very model that is measured says how well an image fits a text. No second model is needed.

    P(answer | image, question with the text in it)    VQAScore (Lin et al. 2024), with the generating model as the
                                                       judge

or, where the config takes texts apart, by the answers to questions about their parts (evals/judges/caption_parts.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.judges.caption_parts import describe_questions, joined, questions_about
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import VQAScoreConfig


def scores(
    handle: ModelHandle, codes: Sequence[np.ndarray], texts: Sequence[Sequence[str]], config: VQAScoreConfig, what: str
) -> np.ndarray:
    """How well each image fits each of its texts, fp64 [images, texts of one]; a collective. texts: as many for
    every image.

    What several texts ask about one image is asked once.
    """
    from evals.judges.answer_probability import answer_probabilities

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


def judge_name(config: VQAScoreConfig) -> str:
    """As the provenance names it."""
    return f"the measured model itself: {describe_questions(config)}"
