"""Text after images or text: answers to questions, captions, completions.

Answers are found for all questions about an image at once: the image is read once, each question is a branch of its
row.
Ids beyond the text never win: only the text rows of the head are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.data.sequence_pieces import encode_text
from liquid_train.data.sequences import prompt_ids
from liquid_train.data.tasks.vqa import question_ids
from liquid_train.generate.decoder import PADDING, STEM, CachedDecoder
from liquid_train.generate.image_sampler import Sampling, pick, uniform_numbers
from liquid_train.vocabulary import Vocabulary

GREEDY = Sampling(temperature=0)
MAX_BRANCHES = 16  # questions after one reading of an image: attention grows with their number squared


@dataclass
class BranchedRow:
    """stem: ids that all branches go on from (may be empty). branches: non-empty ids. numbers: which result each branch
    is."""

    stem: list[int]
    branches: list[list[int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.stem) + sum(len(b) for b in self.branches)


def answer(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    items: Sequence[tuple[np.ndarray, str]],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy answers to (codes [rows, columns], question) pairs, in their order, as documents of task vqa state them.

    An answer ends at eos or at a newline (which begins the next question of a chained document). batch_size: questions
    answered together; those about the same image share one reading of it. progress: called with (answered, all).
    on_token: as complete_ids'.
    """
    tokenizer = vocabulary.tokenizer
    ids = {question: question_ids(question, tokenizer) for question in dict.fromkeys(question for _, question in items)}
    by_image: dict[tuple[bytes, tuple[int, ...]], list[int]] = defaultdict(list)
    for number, (codes, _) in enumerate(items):
        by_image[np.ascontiguousarray(codes).tobytes(), codes.shape].append(number)
    rows = []
    for numbers in by_image.values():
        stem = prompt_ids({"codes": items[numbers[0]][0]}, "vqa", tokenizer)
        width = min(MAX_BRANCHES, batch_size)
        rows += [
            BranchedRow(stem, [ids[items[n][1]] for n in part], part)
            for part in (numbers[i : i + width] for i in range(0, len(numbers), width))
        ]
    return _decode_all(
        model,
        vocabulary,
        rows,
        len(items),
        max_new_tokens,
        batch_size,
        GREEDY,
        newline_ends=True,
        on_token=on_token,
        progress=progress,
    )


def caption(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    images: Sequence[np.ndarray],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    on_token: Callable[[int, int], None] | None = None,
    task: str = "i2t",
) -> list[str]:
    """Greedy captions of code grids [rows, columns], as documents of `task` state them; a caption ends at eos or at a
    newline.

    on_token: as complete_ids'.
    """
    rows = [
        BranchedRow([], [prompt_ids({"codes": codes}, task, vocabulary.tokenizer)], [n])
        for n, codes in enumerate(images)
    ]
    return _decode_all(
        model, vocabulary, rows, len(rows), max_new_tokens, batch_size, GREEDY, newline_ends=True, on_token=on_token
    )


def complete(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
) -> list[str]:
    """What follows each prompt, until eos; seeds: one a prompt, unused when greedy."""
    tokenizer = vocabulary.tokenizer
    ids = [prompt_ids({}, "text", tokenizer) + encode_text(tokenizer, text) for text in prompts]
    return complete_ids(
        model, vocabulary, ids, seeds=seeds, max_new_tokens=max_new_tokens, sampling=sampling, batch_size=batch_size
    )


def complete_ids(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[list[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
    end: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[str]:
    """What follows prompts that are ids already, until eos or `end`. on_token: called with (number of the prompt, new
    id) as they come."""
    rows = [BranchedRow([], [list(ids)], [n]) for n, ids in enumerate(prompts)]
    return _decode_all(
        model,
        vocabulary,
        rows,
        len(rows),
        max_new_tokens,
        batch_size,
        sampling,
        seeds=seeds,
        newline_ends=False,
        end=end,
        on_token=on_token,
    )


class Streamed:
    """Passes the text of one prompt on as its tokens come, whole characters only."""

    def __init__(self, vocabulary: Vocabulary, write: Callable[[str], object]) -> None:
        self.tokenizer, self.write = vocabulary.tokenizer, write
        self.tokens: list[int] = []
        self.shown = ""

    def __call__(self, _: int, token: int) -> None:
        self.tokens.append(token)
        text = str(self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if not text.endswith("\ufffd"):  # else a character whose other bytes are still to come
            self.write(text[len(self.shown) :])
            self.shown = text


def _decode_all(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    rows: list[BranchedRow],
    count: int,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling,
    *,
    newline_ends: bool,
    seeds: Sequence[int] | None = None,
    end: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Continue every branch of every row -> `count` texts by the branches' numbers; stripped where a newline ends
    them."""
    tokenizer, enders = vocabulary.tokenizer, {vocabulary.eos, vocabulary.eos if end is None else end}
    known = dict.fromkeys(enders, True)

    def ends(token: int) -> bool:
        if token not in known:
            known[token] = newline_ends and "\n" in tokenizer.decode([token])
        return known[token]

    texts, done = [""] * count, 0
    for batch in _batches(rows, batch_size):
        uniforms = (
            uniform_numbers([seeds[row.numbers[0]] for row in batch], max_new_tokens)
            if seeds is not None and sampling.temperature
            else None
        )
        for number, tokens in _continue(
            model, vocabulary, batch, max_new_tokens, sampling, uniforms, ends, enders, on_token
        ).items():
            text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            texts[number] = text.split("\n")[0].strip() if newline_ends else text
        done += sum(len(row.branches) for row in batch)
        if progress is not None:
            progress(done, count)
    return texts


def _batches(rows: list[BranchedRow], size: int) -> Iterator[list[BranchedRow]]:
    """Batches of rows of similar length with about `size` branches, never more unless one row has."""
    batch: list[BranchedRow] = []
    for row in sorted(rows, key=len, reverse=True):  # longest first: too little memory shows at once
        if batch and sum(len(r.branches) for r in [*batch, row]) > size:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _continue(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    rows: list[BranchedRow],
    max_new_tokens: int,
    sampling: Sampling,
    uniforms: Tensor | None,
    ends: Callable[[int], bool],
    enders: set[int],
    on_token: Callable[[int, int], None] | None,
) -> dict[int, list[int]]:
    """{number of a branch: its new ids}, the one that ended it left out unless it holds text."""
    columns, width = max(len(row.branches) for row in rows), max(len(row) for row in rows)
    longest = max(len(row.stem) + len(b) for row in rows for b in row.branches) + max_new_tokens - 1
    decoder = CachedDecoder(model, len(rows), width + columns * (max_new_tokens - 1), longest)
    ids, branch, position, ends_at = (
        torch.from_numpy(a).to(decoder.device) for a in _layout(rows, width, columns, vocabulary.pad)
    )
    hidden = decoder.feed(ids, branch, position)
    picked = ends_at.clamp(min=0)
    hidden = hidden.gather(1, picked.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))  # [rows, columns, width]
    position = position.gather(1, picked)  # [rows, columns]
    names = torch.arange(1, columns + 1, device=decoder.device).expand(len(rows), -1)
    found: dict[int, list[int]] = {number: [] for row in rows for number in row.numbers}
    open_branches = {(r, b): number for r, row in enumerate(rows) for b, number in enumerate(row.numbers)}
    for step in range(max_new_tokens):
        logits = decoder.logits(hidden, 0, vocabulary.text_size)  # [rows, columns, text ids]
        numbers = (
            torch.zeros(logits.shape[:-1]) if uniforms is None else uniforms[:, step : step + 1].expand(-1, columns)
        )
        ids = pick(logits, numbers.to(logits.device), sampling)
        new = ids.tolist()
        for (r, b), number in list(open_branches.items()):
            if new[r][b] not in enders:
                found[number].append(new[r][b])
                if on_token is not None:
                    on_token(number, new[r][b])
            if ends(new[r][b]):
                del open_branches[r, b]
        if not open_branches or step + 1 == max_new_tokens:
            break
        position = position + 1
        hidden = decoder.feed(ids, torch.where(ends_at < 0, PADDING, names), position)
    return found


def _layout(
    rows: list[BranchedRow], width: int, columns: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, padded after -> ids, branch and position [rows, width], and each branch's last column [rows, columns] (-1:
    no branch)."""
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    branch, position = np.full_like(ids, PADDING), np.zeros_like(ids)
    last = np.full((len(rows), columns), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        stem, column = len(row.stem), len(row.stem)
        ids[r, :stem], branch[r, :stem], position[r, :stem] = row.stem, STEM, np.arange(stem)
        for b, tokens in enumerate(row.branches):
            part = slice(column, column + len(tokens))
            ids[r, part], branch[r, part], position[r, part] = tokens, b + 1, np.arange(stem, stem + len(tokens))
            column = part.stop
            last[r, b] = column - 1
    return ids, branch, position, last
