"""Drawing: prompts to grids of codes. Used by `liquid generate` and by the evaluations.

    prompts -> [bos] caption + suffix <boi>  (and, for guidance, [bos] <unconditional> <boi>), left-padded
            -> one code a step, from the image rows of the head alone, until the grid is full

Guidance is the published convention: logits = uncond + guidance * (cond - uncond), so that 7 means cond*7 - uncond*6 and 1 means
no guidance. Text ids cannot be drawn, and a picture always has exactly rows x columns codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.data.sequences import DEFAULT_PROMPT, prompt_ids
from liquid_train.generate.decoder import STEM, Decoder, left_padded
from liquid_train.vocabulary import Vocabulary

Progress = Callable[[int, int], None]  # (codes drawn, codes in all)


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k None and top_p 1 leave nothing out."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


@torch.inference_mode()
def draw(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    grid: tuple[int, int],
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    batch_size: int = 32,
    suffix: str = DEFAULT_PROMPT,
    progress: Progress | None = None,
) -> np.ndarray:
    """Codes int64 [len(prompts), rows, columns], one grid a prompt.

    seeds: one a prompt. Its random numbers are drawn from it alone, so a picture does not depend on its batch or its place in it.
    grid: rows, columns. batch_size: pictures drawn together (twice as many rows with guidance). suffix: as in training.
    Raises ValueError when a prompt and its codes are longer than the model's positions.
    """
    assert len(seeds) == len(prompts)
    tokenizer, sampling = vocabulary.tokenizer, Sampling(temperature, top_k, top_p)
    described = [prompt_ids({"text": text}, "t2i", tokenizer, prompt=suffix) for text in prompts]
    null = None if guidance == 1 else prompt_ids({}, "t2i", tokenizer, unconditional=True)
    n_codes = grid[0] * grid[1]
    codes = np.zeros((len(prompts), *grid), dtype=np.int64)
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)

        def report(drawn: int, first: int = start, count: int = len(described[part])) -> None:
            if progress is not None and drawn % grid[1] == 0:
                progress(first * n_codes + count * drawn, len(prompts) * n_codes)

        batch = _draw_batch(model, vocabulary, described[part], null, seeds[part], n_codes, guidance, sampling, report)
        codes[part] = batch.view(-1, *grid).cpu().numpy()
    return codes


def _draw_batch(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    described: Sequence[list[int]],
    null: list[int] | None,
    seeds: Sequence[int],
    n_codes: int,
    guidance: float,
    sampling: Sampling,
    report: Callable[[int], None],
) -> Tensor:
    """Prompts of one batch -> codes [prompts, n_codes]. null: the unconditional prompt, or None without guidance."""
    count = len(described)
    rows = [*described, *([null] * count if null else [])]
    longest = max(len(row) for row in rows)
    decoder = Decoder(model, len(rows), longest + n_codes - 1, longest + n_codes - 1)
    ids, branch, position = left_padded(rows, vocabulary.pad, decoder.device)
    uniforms = uniform_numbers(seeds, n_codes).to(decoder.device)
    codes = torch.empty((count, n_codes), dtype=torch.int64, device=decoder.device)
    for i in range(n_codes):
        hidden = decoder.feed(ids, branch, position)[:, -1]  # [rows, width]
        logits = decoder.logits(hidden, vocabulary.image_start, vocabulary.image_end)
        if null:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance * (conditional - unconditional)
        codes[:, i] = pick(logits, uniforms[:, i], sampling)
        ids = (codes[:, i : i + 1] + vocabulary.image_start).repeat(len(rows) // count, 1)
        branch, position = torch.full_like(ids, STEM), position[:, -1:] + 1
        report(i + 1)
    return codes


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Random numbers in [0, 1): float32 [len(seeds), count], each row a function of its seed (the same on every device)."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def pick(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Sample by inverse CDF: logits fp32 [..., ids] and uniforms [...] in [0, 1) -> indices int64 [...].

    top_k comes before top_p, and of equal candidates at the border of top_k all are kept.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # probability of everything that is likelier
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= sampling.top_p, 0))
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniforms.double().unsqueeze(-1) * cumulative[..., -1:]  # below the total, as uniforms are below 1
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
