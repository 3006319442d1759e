"""Prompts with pictures between the words: "what differs between <image:a.png> and <image:b.png>?"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from liquid_train.data.sequences import check_chat_template, encode_text, image_ids, prompt_ids
from liquid_train.generate.request import PLACE
from liquid_train.vocabulary import BOI, EOI, special_id

USER, ASSISTANT = "\ue000u\ue001", "\ue000a\ue001"  # stand for a message while the template is rendered: no template spells them


def interleaved_ids(text: str, codes: Mapping[Path, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of text with <boi> codes <eoi> where <image:FILE> stands. codes: grids [rows, columns] by file."""
    ids: list[int] = []
    for n, part in enumerate(PLACE.split(text)):  # text, file, text, file, ..., text
        if n % 2:
            ids += [special_id(tokenizer, BOI), *image_ids(codes[Path(part)], tokenizer).tolist(), special_id(tokenizer, EOI)]
        else:
            ids += encode_text(tokenizer, part)
    return ids


def document_ids(text: str, codes: Mapping[Path, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt that a document begins with: [bos] and the interleaved ids."""
    return prompt_ids({}, "text", tokenizer) + interleaved_ids(text, codes, tokenizer)


def turn_ids(text: str, codes: Mapping[Path, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A user's turn through the chat template, up to where the assistant's begins. ValueError for a tokenizer without a template.

    As in training, only what the template itself says can be a control token.
    """
    check_chat_template(tokenizer)
    rendered = str(tokenizer.apply_chat_template([{"role": "user", "content": USER}], tokenize=False, add_generation_prompt=True))
    before, _, after = rendered.partition(USER)
    ends = [tokenizer.encode(part, add_special_tokens=False) for part in (before, after)]
    return [*ends[0], *interleaved_ids(text.strip(), codes, tokenizer), *ends[1]]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the template puts behind an assistant's message, which training teaches to end it; None where it puts none."""
    check_chat_template(tokenizer)
    messages = [{"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}]
    ids = tokenizer.encode(str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(ASSISTANT)[2], add_special_tokens=False)
    return ids[0] if ids else None
