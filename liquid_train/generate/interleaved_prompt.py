"""Prompts with images between the words: "what differs between <image:a.png> and <image:b.png>?"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from liquid_train.data.sequences import check_chat_template, encode_text, image_ids, prompt_ids
from liquid_train.errors import UserError
from liquid_train.generate.request import PLACE
from liquid_train.vocabulary import BOI, EOI, special_id

Part = str | np.ndarray  # words, or an image's codes [rows, columns]


def parts_of(text: str, codes: Mapping[Path, np.ndarray]) -> list[Part]:
    """The words of a prompt, and the codes of an image where <image:FILE> stands. codes: grids [rows, columns] by
    file."""
    # split gives text, file, text, file, ..., text
    return [codes[Path(part)] if n % 2 else part for n, part in enumerate(PLACE.split(text))]


def parts_ids(parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of text, with <boi> codes <eoi> for each image between."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += encode_text(tokenizer, part)
        else:
            ids += [special_id(tokenizer, BOI), *image_ids(part, tokenizer).tolist(), special_id(tokenizer, EOI)]
    return ids


def document_ids(text: str, codes: Mapping[Path, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt that a document begins with: [bos] and the ids of its parts."""
    return prompt_ids({}, "text", tokenizer) + parts_ids(parts_of(text, codes), tokenizer)


def turn_ids(text: str, codes: Mapping[Path, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A user's turn through the chat template, up to where the assistant's begins. UserError for a tokenizer without a
    template."""
    return conversation_ids([("user", parts_of(text.strip(), codes))], tokenizer)


def conversation_ids(turns: Sequence[tuple[str, Sequence[Part]]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Turns (role, parts) through the chat template, up to where the assistant's next one begins.

    As in training, only what the template itself says can be a control token. UserError for a tokenizer without a
    template, or with one that refuses them.
    """
    check_chat_template(tokenizer)
    marks = _marks(len(turns))
    messages = [{"role": role, "content": mark} for (role, _), mark in zip(turns, marks, strict=True)]
    try:
        rest = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses this conversation: {error}") from error
    ids: list[int] = []
    for (role, parts), mark in zip(turns, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise UserError(f"the model's chat template leaves out a message of role {role}")
        ids += tokenizer.encode(before, add_special_tokens=False) + parts_ids(parts, tokenizer)
    ids += tokenizer.encode(rest, add_special_tokens=False)
    return ids


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the template puts after an assistant's message, which training teaches to end it; None where it
    puts none."""
    check_chat_template(tokenizer)
    user, assistant = _marks(2)
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    ids = tokenizer.encode(
        str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(assistant)[2], add_special_tokens=False
    )
    return ids[0] if ids else None


def _marks(count: int) -> list[str]:
    """What stands for messages while a template is rendered; private use, no template spells them."""
    return [f"\ue000{n}\ue001" for n in range(count)]
