"""From one sample to the token ids of one document, and where its loss is (DESIGN section 5).

    text   [bos] text [eos]                                                     loss on every token
    t2i    [bos] caption + prompt suffix <boi> codes <eoi> [eos]                loss on codes, eoi, eos
    i2t    [bos] <boi> codes <eoi> The caption of this image is:caption [eos]   loss on caption, eos
    vqa    [bos] <boi> codes <eoi> newline question, space, answer [eos]        loss on answers, eos

The published Liquid collator builds the same ids; a tokenizer without bos begins with none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from liquid_train.vocabulary import BOI, EOI, UNCONDITIONAL, special_id

IGNORED = -100
CAPTION_LEAD = "The caption of this image is:"
DEFAULT_PROMPT = " Generate an image based on this description."

Piece = tuple[Sequence[int] | np.ndarray, bool]  # ids, and whether they carry loss


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

    sample: `text`; for images `codes` (rows x columns, or 1-D), optionally `multiratio` with `width` and `height` in pixels;
    for vqa `question` and `answer`, or `turns`: a list of such pairs chained behind one image.
    prompt: t2i's suffix. unconditional: t2i with <unconditional> in place of caption and suffix.
    Raises ValueError for an unknown task and KeyError for a sample that lacks what its task needs.
    """
    pieces: list[Piece] = [(prompt_ids(sample, task, tokenizer, prompt=prompt, unconditional=unconditional), task == "text")]
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
    sample: Mapping[str, Any], task: str, tokenizer: PreTrainedTokenizerBase, *, prompt: str | None = None, unconditional: bool = False
) -> list[int]:
    """What a document begins with before anything is to be predicted: what a trained model is given to go on from.

    t2i up to <boi>, i2t up to the caption's lead, vqa up to <eoi> (questions follow, see `question_ids`), text the bos alone.
    """
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if task == "t2i":
        ids += _description(sample, tokenizer, DEFAULT_PROMPT if prompt is None else prompt, unconditional)
        ids.append(special_id(tokenizer, BOI))
    elif task in ("i2t", "vqa"):
        ids += [special_id(tokenizer, BOI), *image_ids(sample["codes"], tokenizer).tolist(), special_id(tokenizer, EOI)]
        ids += encode_text(tokenizer, CAPTION_LEAD) if task == "i2t" else []
    elif task != "text":
        raise ValueError(f"task={task}: one of text, t2i, i2t, vqa")
    return ids


def question_ids(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of one question behind an image or behind an earlier answer."""
    return encode_text(tokenizer, "\n" + question)


def assemble(pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate pieces into ids and labels."""
    ids = np.concatenate([np.asarray(p, dtype=np.int64) for p, _ in pieces])
    labels = np.concatenate([np.asarray(p, dtype=np.int64) if loss else np.full(len(p), IGNORED, np.int64) for p, loss in pieces])
    return ids, labels


def size_sentence(sample: Mapping[str, Any]) -> str:
    """The published sentence that tells a multiratio image's size in pixels; empty for other images."""
    return f" Image Size: Width is {sample['width']} Height is {sample['height']}." if sample.get("multiratio") else ""


def image_ids(codes: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Codes of any shape -> image token ids, row-major, int64 [n]."""
    return np.asarray(codes).reshape(-1).astype(np.int64) + len(tokenizer)


def _description(sample: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompt: str, unconditional: bool) -> list[int]:
    size = size_sentence(sample)
    if unconditional:
        return [*encode_text(tokenizer, size), special_id(tokenizer, UNCONDITIONAL)]
    return encode_text(tokenizer, sample["text"] + size + prompt)
