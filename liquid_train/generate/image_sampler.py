"""ImageSampler: prompts to grids of codes. Used by `liquid generate` and by the evaluations.

    prompts -> [bos] caption + suffix <boi>  (and, for guidance, [bos] <unconditional> <boi>), left-padded
            -> one code a step, from the image rows of the head alone, until the grid is full

Guidance is the published convention: logits = uncond + guidance * (cond - uncond), so that 7 means cond*7 - uncond*6
and 1 means no guidance. Text ids cannot be drawn, and an image always has exactly rows x columns codes; the <eoi>
after them is certain, so nobody computes it.

An image is a function of its prompt and its seed, to the bit, whatever is drawn next to it. Random numbers come from
the seed.
The logits must not change in their last bit either, or a draw near the border of two codes flips and the image goes
another way. Two things would change them. A matrix product adds up in another order when it has few rows: so it never
has few (MIN_ROWS).
Attention adds up in another order when a row is padded to another length: so that length follows from the prompt
(WIDTH_STEP).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.data.sequences import prompt_ids
from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.generate.compiled_decode import require_compiler
from liquid_train.generate.decoder import CachedDecoder, left_padded
from liquid_train.vocabulary import UNCONDITIONAL, Vocabulary

Progress = Callable[[int, int], None]  # (codes drawn, codes in all)

# Measured with MKL and oneDNN for 1 to 8 threads: from 12 rows on, a row of a product has the same bits in any product.
# On a GPU kernels are chosen by the number of rows at every size: there a batch is always filled up to batch_size.
MIN_ROWS = 16
WIDTH_STEP = 16  # prompts are padded to the next multiple, and drawn next to those of the same width


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k None and top_p 1 leave nothing out."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


@torch.inference_mode()
def sample_images(
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
    size: tuple[int, int] | None = None,
    null_prompt: str = UNCONDITIONAL,
    progress: Progress | None = None,
    compile: bool = False,
    task: str = "t2i",
) -> np.ndarray:
    """Codes int64 [len(prompts), rows, columns], one grid a prompt.

    seeds: one a prompt; an image depends on its prompt and seed alone (on a GPU: and on batch_size).
    grid: rows, columns. batch_size: images generated together (twice as many rows with guidance). suffix: as in
    training.
    size: width and height in pixels, which the prompt then states, as in training on images of many aspect ratios.
    null_prompt: what guidance leads away from, <unconditional> or any text.
    compile: see compiled_decode.py; images then depend on batch_size, and differ from those generated without.
    task: whose documents the prompts begin.
    Raises UserError when a prompt and its codes are longer than the model's positions, or compile is not possible.
    """
    if compile:
        require_compiler(model)
    assert len(seeds) == len(prompts)
    stated = stated_size(size)
    described = [described_ids(vocabulary, text, suffix, size, task) for text in prompts]
    if null_prompt == UNCONDITIONAL:
        unconditional = prompt_ids(stated, task, vocabulary.tokenizer, unconditional=True)
    else:
        unconditional = prompt_ids({"text": null_prompt, **stated}, task, vocabulary.tokenizer, prompt="")
    null = None if guidance == 1 else unconditional
    sampler = ImageSampler(
        model, vocabulary, null, grid, guidance, Sampling(temperature, top_k, top_p), batch_size, compile
    )
    codes = np.zeros((len(prompts), *grid), dtype=np.int64)
    done = 0
    for numbers in sampler.batches(described):

        def report(generated: int, before: int = done, count: int = len(numbers)) -> None:
            if progress is not None and generated % grid[1] == 0:
                progress(before + count * generated, codes.size)

        generated = sampler.sample([described[n] for n in numbers], [seeds[n] for n in numbers], report)
        codes[numbers] = generated.view(-1, *grid).cpu().numpy()
        done += generated.numel()
    return codes


def stated_size(size: tuple[int, int] | None) -> dict[str, Any]:
    """What a sample says of its size in pixels where the prompt states it."""
    return {} if size is None else {"multiratio": True, "width": size[0], "height": size[1]}


def described_ids(
    vocabulary: Vocabulary, text: str, suffix: str, size: tuple[int, int] | None, task: str = "t2i"
) -> list[int]:
    """The prompt of an image, up to <boi>."""
    return prompt_ids({"text": text, **stated_size(size)}, task, vocabulary.tokenizer, prompt=suffix)


def columns_of(length: int) -> int:
    """Columns that a prompt of so many ids takes in the cache, padding included."""
    return -(-length // WIDTH_STEP) * WIDTH_STEP


@dataclass(frozen=True)
class ImageSampler:
    """What all images of a call share. null: the unconditional prompt, or None without guidance."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    null: list[int] | None
    grid: tuple[int, int]
    guidance: float
    sampling: Sampling
    batch_size: int
    compile: bool = False

    def width(self, prompt: Sequence[int]) -> int:
        """Columns that a prompt takes in the cache, padding included."""
        return columns_of(max(len(prompt), len(self.null or ())))

    def batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Numbers of the prompts that are drawn together: of one width, in their order, the widest first."""
        by_width: dict[int, list[int]] = defaultdict(list)
        for n, prompt in enumerate(prompts):
            by_width[self.width(prompt)].append(n)
        size = self.batch_size
        return [
            same[i : i + size] for _, same in sorted(by_width.items(), reverse=True) for i in range(0, len(same), size)
        ]

    def sample(self, prompts: Sequence[list[int]], seeds: Sequence[int], report: Callable[[int], None]) -> Tensor:
        """Prompts of one width -> codes int64 [prompts, rows * columns]."""
        count, n_codes = len(prompts), self.grid[0] * self.grid[1]
        decoder, hidden, position = self.read(prompts, n_codes)
        vocabulary = self.vocabulary
        uniforms = uniform_numbers(seeds, n_codes).to(decoder.device)
        codes = torch.empty((count, n_codes), dtype=torch.int64, device=decoder.device)
        source = torch.arange(len(position), device=decoder.device) % count  # the image that each row belongs to
        for i in range(n_codes):
            if i:
                position = position + 1
                hidden = decoder.step((codes[:, i - 1] + vocabulary.image_start)[source, None], position)
            logits = decoder.logits(hidden, vocabulary.image_start, vocabulary.image_end)
            conditional = logits[:count]
            if self.null:
                unconditional = logits[count : 2 * count]
                conditional = unconditional + self.guidance * (conditional - unconditional)
            codes[:, i] = pick(conditional, uniforms[:, i], self.sampling)
            report(i + 1)
        return codes

    def read(self, prompts: Sequence[list[int]], n_codes: int) -> tuple[CachedDecoder, Tensor, Tensor]:
        """Read every different prompt once -> (decoder, last hidden states [rows, width], their positions [rows, 1]).

        Rows: the prompts, with guidance as many times the null prompt, then repetitions up to a number that keeps the
        bits.
        """
        rows = [*prompts, *([self.null] * len(prompts) if self.null else [])]
        filled = self.compile or self.model.device.type != "cpu"  # compiled code is made for one number of rows
        full = self.batch_size * (2 if self.null else 1) if filled else MIN_ROWS
        number = {row: n for n, row in enumerate(dict.fromkeys(map(tuple, rows)))}
        width = self.width(prompts[0])
        decoder = CachedDecoder(
            self.model, len(number), width + n_codes - 1, max(map(len, rows)) + n_codes - 1, self.compile
        )
        ids, branch, position = left_padded(list(number), self.vocabulary.pad, decoder.device, width)
        hidden = decoder.feed(ids, branch, position)[:, -1]
        order = [number[tuple(row)] for row in rows]
        order += [order[i % len(prompts)] for i in range(len(rows), full)]
        taken = torch.tensor(order, device=decoder.device)
        decoder.take(taken)
        return decoder, hidden[taken], position[taken, -1:]


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Random numbers in [0, 1): float32 [len(seeds), count], each row a function of its seed (the same on every
    device)."""
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
        probabilities = torch.zeros_like(probabilities).scatter(
            -1, order, ordered.masked_fill(before >= sampling.top_p, 0)
        )
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniforms.double().unsqueeze(-1) * cumulative[..., -1:]  # below the total, as uniforms are below 1
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
