"""Drawing with guidance: the sampler against a hand-written loop over plain transformers.

Baseline: a loop that anyone would write first: prompts padded left, one doubled batch, transformers' DynamicCache,
logits of the whole vocabulary at every step, text ids masked, torch.multinomial. Same weights, prompts, dtype and
threads; the two take turns.
Weights are random (the architectures are the quickstart's and SmolLM2-135M's): time does not depend on them.

    python -m benchmarks.generation [--model quickstart|smollm2] [--precision fp32|bf16|int8] [--codes N] [--repeats N]
    [--compile] [--recompute [N]]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from liquid_train.data.sequences import prompt_ids
from liquid_train.generate.fused_decode import join_weights
from liquid_train.generate.image_sampler import sample_images
from liquid_train.generate.int8 import quantize
from liquid_train.generate.session import DTYPES
from liquid_train.vocabulary import Vocabulary, train_bpe

GUIDANCE, TEMPERATURE, BATCH = 3.0, 0.8, 8
WORDS = ("a red circle", "a large blue rectangle", "a teal triangle", "a small black circle on the left")
# text rows, image rows, codes of an image, what differs from transformers' Qwen2 or Llama
SHAPES = {
    "quickstart": (
        1024,
        1024,
        64,
        {
            "model_type": "qwen2",
            "hidden_size": 160,
            "intermediate_size": 448,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
        },
    ),
    "smollm2": (
        49152,
        8192,
        256,
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
}


def build(name: str, precision: str) -> tuple[PreTrainedModel, Vocabulary]:
    """Random weights; text rows beyond the small tokenizer are there for the head to compute, as in the real model."""
    text, codebook, _, fields = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Vocabulary(
            train_bpe([*WORDS, "Generate an image based on this description."], 320, Path(folder)),
            codebook,
            text + codebook,
        )
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **fields, vocab_size=text + codebook, max_position_embeddings=4096, tie_word_embeddings=True, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[precision]).eval().requires_grad_(False)
    if precision == "int8":
        quantize(model)
    join_weights(model)
    return model, vocabulary


@torch.inference_mode()
def simple_loop(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    codes: int,
    *,
    cache: bool = True,
    before: int = 0,
) -> Tensor:
    """The baseline: ids [prompts, codes], after `before` codes that are given.

    cache=False computes the whole prefix at every step, as the published loop does under transformers 5.
    """
    null = prompt_ids({}, "t2i", vocabulary.tokenizer, unconditional=True)
    rows = [prompt_ids({"text": text}, "t2i", vocabulary.tokenizer) for text in prompts] + [null] * len(prompts)
    width = max(map(len, rows))
    given = [vocabulary.image_start + i for i in range(before)]
    ids = torch.tensor([[vocabulary.pad] * (width - len(r)) + r + given for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * (len(r) + before) for r in rows])
    state, generated = (DynamicCache(config=model.config) if cache else None), []
    new = ids
    for _ in range(codes):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits = model(
            input_ids=new,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=state,
            use_cache=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        conditional, unconditional = logits.float().chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        guided[:, : vocabulary.image_start] = float("-inf")
        guided[:, vocabulary.image_end :] = float("-inf")
        token = torch.multinomial((guided / TEMPERATURE).softmax(-1), 1)
        generated.append(token)
        token = token.repeat(2, 1)
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        new = token if cache else torch.cat([new, token], 1)
    return torch.cat(generated, 1)


def compare(name: str, precision: str, codes: int, repeats: int, recompute: int, compile: bool) -> None:
    """Print milliseconds a step and images a second of every way, and the ratio to the first; by the clock and by time
    on the processors."""
    model, vocabulary = build(name, precision)
    prompts = [WORDS[i % len(WORDS)] for i in range(BATCH)]

    def sampler(n: int, compile: bool = False) -> None:
        sample_images(
            model,
            vocabulary,
            prompts,
            seeds=range(BATCH),
            grid=(1, n),
            guidance=GUIDANCE,
            temperature=TEMPERATURE,
            batch_size=BATCH,
            compile=compile,
        )

    ways: dict[str, Callable[[int], object]] = {
        "simple loop": lambda n: simple_loop(model, vocabulary, prompts, n),
        "sampler": sampler,
    }
    if compile:
        ways["compiled"] = lambda n: sampler(n, True)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for way, run in ways.items():
        run(codes if way == "compiled" else 4)  # warms up; compiled code is made for one length
    for _ in range(repeats):
        for way, run in ways.items():
            times[way].append(seconds(lambda run=run: run(codes)))
    steps = dict.fromkeys(ways, codes)
    if recompute:  # steps from the middle of the image on: the time of a step grows with its prefix
        way = f"whole prefix ({recompute})"
        steps[way] = recompute
        times[way] = [
            seconds(
                lambda: simple_loop(model, vocabulary, prompts, recompute, cache=False, before=(codes - recompute) // 2)
            )
        ]
    per_step = {
        way: [statistics.median(kind) / steps[way] for kind in zip(*found, strict=True)] for way, found in times.items()
    }
    for way, (step, busy) in per_step.items():
        ratio, busy_ratio = (base / own for base, own in zip(per_step["simple loop"], (step, busy), strict=True))
        print(
            f"{name:<12}{precision:<6}{way:<20}{step * 1e3:>9.2f}{BATCH / step / codes:>10.3f}"
            f"{ratio:>8.2f}{busy * 1e3:>12.2f}{busy_ratio:>8.2f}",
            flush=True,
        )


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and on the processors (all threads together)."""
    started, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - busy


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation", description="Drawing with guidance, 8 images at a time."
    )
    parser.add_argument("--model", choices=tuple(SHAPES), help="only this one")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="only this one (default: fp32 and bf16)")
    parser.add_argument("--codes", type=int, help="codes an image (default: 64 and 256)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also compiled steps")
    parser.add_argument(
        "--recompute",
        type=int,
        nargs="?",
        const=8,
        default=0,
        metavar="N",
        help=(
            "also the loop without a cache, which transformers 5 makes of the published one: N steps (8) once, in "
            "the middle of the image"
        ),
    )
    args = parser.parse_args(argv)
    print(
        f"{BATCH} images with guidance ({2 * BATCH} rows), {torch.get_num_threads()} thread(s), median of "
        f"{args.repeats}, taking turns"
    )
    if args.recompute:
        print(
            f"whole prefix: {args.recompute} steps in the middle of the image, once; images/s from the time of "
            "such a step"
        )
    print(f"{'model':<12}{'':<6}{'':<20}{'ms/step':>9}{'images/s':>10}{'ratio':>8}{'CPU ms/step':>12}{'ratio':>8}")
    for name in (args.model,) if args.model else SHAPES:
        for precision in (args.precision,) if args.precision else ("fp32", "bf16"):
            compare(name, precision, args.codes or SHAPES[name][2], args.repeats, args.recompute, args.compile)


if __name__ == "__main__":
    main()
