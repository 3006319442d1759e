"""From one sample to the token ids of one document, and where its loss is (DESIGN section 5).

    text   [bos] text [eos]                                                     loss on every token
    t2i    [bos] caption + prompt suffix <boi> codes <eoi> [eos]                loss on codes, eoi, eos
    i2t    [bos] <boi> codes <eoi> The caption of this image is:caption [eos]   loss on caption, eos
    vqa    [bos] <boi> codes <eoi> newline question, space, answer [eos]        loss on answers, eos
    chat   the tokenizer's chat template, <boi> codes <eoi> at <image>          loss on the assistant's turns with their
           end

The published Liquid collator builds the same ids; a tokenizer without bos begins with none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from liquid_train.errors import UserError
from liquid_train.vocabulary import BOI, EOI, UNCONDITIONAL, special_id

IGNORED = -100
CAPTION_LEAD = "The caption of this image is:"
DEFAULT_PROMPT = " Generate an image based on this description."

IMAGE_PLACE = "<image>"  # in a chat message: where its image stands

Piece = tuple[Sequence[int] | np.ndarray, bool]  # ids, and whether they carry loss


class BadMessages(ValueError):
    """A sample's chat messages cannot be made into a document."""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text: nothing added, and a spelled-out special token ("<eos>") stays ordinary characters."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


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
    Raises UserError for an unknown task or, for chat, a tokenizer without a chat template, BadMessages for messages
    that it cannot render, and KeyError for a sample that lacks what its task needs.
    """
    if task == "chat":
        return assemble(chat_pieces(sample, tokenizer))
    pieces: list[Piece] = [
        (prompt_ids(sample, task, tokenizer, prompt=prompt, unconditional=unconditional), task == "text")
    ]
    if task in ("text", "i2t"):
        pieces.append((encode_text(tokenizer, sample["text"]), True))
    elif task == "t2i":
        pieces.append((image_ids(sample["codes"], tokenizer), True))
        pieces.append(([special_id(tokenizer, EOI)], True))
    else:
        for question, answer in sample.get("turns") or [(sample["question"], sample["answer"])]:
            pieces.append((question_ids(question, tokenizer), False))
            pieces.append((encode_text(tokenizer, " " + answer), True))
    if append_eos:
        pieces.append(([tokenizer.eos_token_id], True))
    return assemble(pieces)


def prompt_ids(
    sample: Mapping[str, Any],
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str | None = None,
    unconditional: bool = False,
) -> list[int]:
    """What a document begins with before anything is to be predicted: what a trained model is given to go on from.

    t2i up to <boi>, i2t up to the caption's lead, vqa up to <eoi> (questions follow, see `question_ids`), text the bos
    alone.
    """
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if task == "t2i":
        ids += _description(sample, tokenizer, DEFAULT_PROMPT if prompt is None else prompt, unconditional)
        ids.append(special_id(tokenizer, BOI))
    elif task in ("i2t", "vqa"):
        ids += [special_id(tokenizer, BOI), *image_ids(sample["codes"], tokenizer).tolist(), special_id(tokenizer, EOI)]
        ids += encode_text(tokenizer, CAPTION_LEAD) if task == "i2t" else []
    elif task != "text":
        raise UserError(f"task={task}: one of text, t2i, i2t, vqa, chat")
    return ids


def question_ids(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of one question after an image or after an earlier answer."""
    return encode_text(tokenizer, "\n" + question)


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError when the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            "task=chat: the tokenizer has no chat template; choose the folder of an instruction-tuned model "
            "(backbone.path), or another task"
        )


def chat_pieces(sample: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Messages through the chat template. Only what the template itself says can be a control token, never what a
    message spells.

    The template is rendered with a mark in place of every content, so that the contents can be encoded apart. The first
    token after an assistant's content ends the turn and carries loss with it. Nothing is added that the template does
    not say.
    """
    check_chat_template(tokenizer)
    messages = sample["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {type(m.get(k)) for k in ("role", "content")} == {str} for m in messages
    ):
        raise BadMessages("messages are not a list of role and content")
    images = sum(m["content"].count(IMAGE_PLACE) for m in messages)
    if images != ("codes" in sample):
        raise BadMessages(f"messages: {images} times {IMAGE_PLACE} for {int('codes' in sample)} images")
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]  # private use: no template spells them
    try:
        rendered = tokenizer.apply_chat_template(
            [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)], tokenize=False
        )
    except TemplateError as error:
        raise BadMessages(f"messages: the chat template refuses them: {error}") from error
    pieces: list[Piece] = []
    rest, assistant = str(rendered), False
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise BadMessages(f"messages: the chat template leaves out a message of role {message['role']}")
        pieces += _template_pieces(before, assistant, tokenizer)
        assistant = message["role"] == "assistant"
        head, image, tail = message["content"].strip().partition(IMAGE_PLACE)
        pieces.append((encode_text(tokenizer, head), assistant))
        if image:
            pieces.append(
                (
                    [special_id(tokenizer, BOI), *image_ids(sample["codes"], tokenizer), special_id(tokenizer, EOI)],
                    assistant,
                )
            )
            pieces.append((encode_text(tokenizer, tail), assistant))
    return [*pieces, *_template_pieces(rest, assistant, tokenizer)]


def _template_pieces(text: str, ends_answer: bool, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [(ids[:1], ends_answer), (ids[1:], False)]


def assemble(pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate pieces into ids and labels."""
    ids = np.concatenate([np.asarray(p, dtype=np.int64) for p, _ in pieces])
    labels = np.concatenate(
        [np.asarray(p, dtype=np.int64) if loss else np.full(len(p), IGNORED, np.int64) for p, loss in pieces]
    )
    return ids, labels


def size_sentence(sample: Mapping[str, Any]) -> str:
    """The published sentence that tells a multiratio image's size in pixels; empty for other images."""
    return f" Image Size: Width is {sample['width']} Height is {sample['height']}." if sample.get("multiratio") else ""


def image_ids(codes: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Codes of any shape -> image token ids, row-major, int64 [n]."""
    return np.asarray(codes).reshape(-1).astype(np.int64) + len(tokenizer)


def _description(
    sample: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompt: str, unconditional: bool
) -> list[int]:
    size = size_sentence(sample)
    if unconditional:
        return [*encode_text(tokenizer, size), special_id(tokenizer, UNCONDITIONAL)]
    return encode_text(tokenizer, sample["text"] + size + prompt)
