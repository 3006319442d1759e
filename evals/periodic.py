"""What is measured while training: VQA accuracy on a fixed subset and a grid of pictures, the same questions, prompts and seeds each time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from evals.drawn_shapes import judge
from evals.t2i import named
from evals.vqa import QuestionSet, ask, is_right, load_questions
from liquid_train.config import EvalsConfig
from liquid_train.data.shards import ShardSet
from liquid_train.generate.pictures import contact_sheet, decode, save_png
from liquid_train.generate.sampler import draw
from liquid_train.image_tokenizer import ImageTokenizer
from liquid_train.vocabulary import Vocabulary

KINDS = ("color", "shape", "yes/no")
BATCH = 64  # questions or pictures together


def evaluate(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    image_tokenizer: ImageTokenizer,
    config: EvalsConfig,
    *,
    sets: str | None,
    grid: tuple[int, ...],
    prompt: str,
    step: int,
    out_dir: Path,
    rank: int,
    world_size: int,
) -> dict[str, float]:
    """Metrics by the name they are logged under; a collective: every rank holds the whole model and does its share.

    sets: the shard set whose questions are asked, None for no questions. grid: rows and columns of codes; empty where the model
    has seen no pictures. prompt: suffix of a text-to-image prompt. Rank 0 writes out_dir/samples/step-NNNNNNNN.png and .json and
    alone returns what is measured on the pictures.
    """
    metrics: dict[str, float] = {}
    if sets is not None and config.vqa_samples:
        data = load_questions(ShardSet(sets, codebook_size=vocabulary.codebook_size), config.vqa_samples)
        metrics |= question_accuracy(model, vocabulary, data, rank, world_size)
    if len(grid) == 2 and config.images and config.prompts:
        prompts = [config.prompts[i % len(config.prompts)] for i in range(config.images)]
        codes = draw_shared(model, vocabulary, config, prompts, (grid[0], grid[1]), prompt, rank, world_size)
        if rank == 0:
            pixels = decode(image_tokenizer, codes)
            write_grid(out_dir / "samples", step, pixels, prompts, config)
            metrics |= picture_metrics(pixels, prompts)
    return metrics


def question_accuracy(model: PreTrainedModel, vocabulary: Vocabulary, data: QuestionSet, rank: int, world_size: int) -> dict[str, float]:
    """Share of right answers over all ranks, in all and by type; every rank asks about its own pictures."""
    own = QuestionSet(data.codes, [q for q in data.questions if q.image % world_size == rank], {})
    counts = torch.zeros(2, len(KINDS), dtype=torch.float64, device=model.device)  # right, asked
    if own.questions:
        for question, given in zip(own.questions, ask(model, vocabulary, own, batch_size=BATCH), strict=True):
            column = KINDS.index(question.kind)
            counts[0, column] += is_right(given, question.answers)
            counts[1, column] += 1
    if world_size > 1:
        dist.all_reduce(counts)
    right, asked = counts.cpu()
    metrics = {"eval/vqa_accuracy": float(right.sum() / asked.sum())}
    for i, kind in enumerate(KINDS):
        if asked[i]:
            metrics[f"eval/vqa_accuracy_{kind.replace('/', '_')}"] = float(right[i] / asked[i])
    return metrics


def draw_shared(
    model: PreTrainedModel, vocabulary: Vocabulary, config: EvalsConfig, prompts: list[str], grid: tuple[int, int], suffix: str, rank: int, world_size: int
) -> np.ndarray:
    """Codes [prompts, rows, columns] on every rank; rank r draws every world_size-th picture, picture i with seed i."""
    codes = torch.zeros((len(prompts), *grid), dtype=torch.int64, device=model.device)
    own = list(range(rank, len(prompts), world_size))
    if own:
        drawn = draw(
            model, vocabulary, [prompts[i] for i in own], seeds=own, grid=grid, guidance=config.guidance, temperature=config.temperature, top_k=config.top_k,
            batch_size=BATCH, suffix=suffix,
        )  # fmt: skip
        codes[own] = torch.from_numpy(drawn).to(codes.device)
    if world_size > 1:
        dist.all_reduce(codes)  # the others' places are zero
    return codes.cpu().numpy()


def write_grid(folder: Path, step: int, pixels: np.ndarray, prompts: list[str], config: EvalsConfig) -> None:
    """samples/step-NNNNNNNN.png, and beside it .json with what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = math.ceil(math.sqrt(len(prompts)))
    about: dict[str, Any] = {"step": step, "prompts": prompts, "columns": columns, "guidance": config.guidance}
    partial: Path = folder / f".step-{step:08d}.json.partial"
    partial.write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(folder / f"step-{step:08d}.json")
    save_png(folder / f"step-{step:08d}.png", contact_sheet(list(pixels), columns))


def picture_metrics(pixels: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """Shares of right colours and right shapes among the pictures whose prompt names one."""
    verdicts = [(judge(p), *named(text)) for p, text in zip(pixels, prompts, strict=True)]
    color = [v.color == c for v, c, _ in verdicts if c]
    shape = [v.shape == s for v, _, s in verdicts if s]
    return {key: float(np.mean(values)) for key, values in (("eval/right_color", color), ("eval/right_shape", shape)) if values}
