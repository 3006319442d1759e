"""From one sample to the token ids of one document, by the task's name (data/tasks/ has what each task does)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.tasks import find_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_sequence(
    sample: Mapping[str, Any],
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str | None = None,
    unconditional: bool = False,
    append_eos: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """One document: (input_ids, labels), both int64 of one length, -100 where there is no loss; labels are not shifted.

    sample: `text`; for images `codes` (rows x columns, or 1-D), optionally `multiratio` with `width` and `height` in
    pixels; for vqa `question` and `answer`, or `turns`: a list of such pairs chained after one image; for chat
    `messages`: [{role, content}].
    prompt: t2i's suffix. unconditional: t2i with <unconditional> in place of caption and suffix.
    Raises UserError for an unknown task or, for chat, a tokenizer without a chat template, BadSample for messages
    that it cannot render, and KeyError for a sample that lacks what its task needs.
    """
    fields = _with_choices(sample, prompt, unconditional)
    return find_task(task, "task").sequence(fields, tokenizer, append_eos=append_eos)


def prompt_ids(
    sample: Mapping[str, Any],
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str | None = None,
    unconditional: bool = False,
) -> list[int]:
    """What a document begins with before anything is to be predicted: what a trained model is given to continue.

    t2i up to <boi>, i2t up to the caption's lead, vqa up to <eoi> (questions follow, see `tasks.vqa.question_ids`),
    text the bos alone.
    """
    return find_task(task, "task").prompt_ids(_with_choices(sample, prompt, unconditional), tokenizer)


def _with_choices(sample: Mapping[str, Any], prompt: str | None, unconditional: bool) -> dict[str, Any]:
    return {**sample, "prompt_suffix": prompt, "unconditional": unconditional}
