"""What the tasks' sequences are made of: ids of text and of images, and where the loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.text_normalizer import normalize_text
from liquid_train.vocabulary import BOI, EOI, special_id, text_size

if TYPE_CHECKING:  # it takes most of a second, and a prompt is checked without it
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token without loss

Piece = tuple[Sequence[int] | np.ndarray, bool]  # ids, and whether they carry loss
Part = str | np.ndarray  # of a prompt: words, or an image's codes [rows, columns]


class BadSample(ValueError):
    """No document can be made of a sample; the message is the reason that is counted and logged."""


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What every document begins with: [bos], or nothing for a tokenizer without bos."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text: nothing added, and a spelled-out special token ("<eos>") stays ordinary characters. Text that
    no tokenizer takes is normalized (text_normalizer.py)."""
    ids: list[int] = tokenizer.encode(normalize_text(text), add_special_tokens=False, split_special_tokens=True)
    return ids


def image_ids(codes: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Codes of any shape -> image token ids, row-major, int64 [n]."""
    return np.asarray(codes).reshape(-1).astype(np.int64) + text_size(tokenizer)


def whole_image(codes: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """<boi> codes <eoi>."""
    return [special_id(tokenizer, BOI), *image_ids(codes, tokenizer).tolist(), special_id(tokenizer, EOI)]


def parts_ids(parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of words, with <boi> codes <eoi> for each image between them."""
    ids: list[int] = []
    for part in parts:
        ids += encode_text(tokenizer, part) if isinstance(part, str) else whole_image(part, tokenizer)
    return ids


def size_sentence(sample: Mapping[str, Any]) -> str:
    """The published sentence that tells a multiratio image's size in pixels; empty for other images."""
    return f" Image Size: Width is {sample['width']} Height is {sample['height']}." if sample.get("multiratio") else ""


def assemble(pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate pieces into ids and labels, both int64 [n]; labels are -100 where there is no loss."""
    ids = np.concatenate([np.asarray(p, dtype=np.int64) for p, _ in pieces])
    labels = np.concatenate(
        [np.asarray(p, dtype=np.int64) if loss else np.full(len(p), IGNORED, np.int64) for p, loss in pieces]
    )
    return ids, labels
