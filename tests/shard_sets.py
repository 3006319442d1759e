"""Small shard sets written by the real writer, with random codes of the shipped tokenizer's codebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.writer import PARTIAL, ShardWriter
from liquid_train.data.sample_table import write_samples
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN

WEIGHTS = Path(__file__).parents[1] / "liquid_train" / "weights" / "vq_easy"
COLORS, SHAPES = ("red", "blue", "teal"), ("circle", "triangle")


def shipped_fingerprint() -> str:
    return TamingVQGAN.from_files(WEIGHTS / "vqgan.yaml", WEIGHTS / "model.safetensors", parts=("decoder",)).fingerprint


def finish_set(folder: Path, writers: list[ShardWriter], **index: object) -> Path:
    entries = [w.finish() for w in writers]
    (folder / PARTIAL).rmdir()
    rows = write_samples(folder, [w.rows for w in writers], sum(e["nsamples"] for e in entries))
    whole = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": folder.name, "shardlist": entries}
    (folder / "index.json").write_text(json.dumps(whole | rows | index))
    return folder


def image_set(
    folder: Path,
    samples: int = 40,
    per_shard: int = 30,
    side: int = 8,
    questions: int = 3,
    fingerprint: str | None = None,
    colors: tuple[str, ...] = COLORS,
    shapes: tuple[str, ...] = SHAPES,
) -> Path:
    """`samples` captioned images of side x side random codes with questions. Words other than easy-VQA's for colors and
    shapes make it a set that is not taken for easy-VQA."""
    (folder / PARTIAL).mkdir(parents=True)
    generator = np.random.default_rng(0)
    writers: list[ShardWriter] = []
    for n in range(samples):
        if n % per_shard == 0:
            writers.append(ShardWriter(folder, n // per_shard))
        color, shape = colors[n % 3], shapes[n % 2]
        asked = [
            ("what color is the shape?", color),
            ("what shape is present?", shape),
            (f"is there a {shape}?", "yes"),
            ("is there a red shape?", "no"),
        ][:questions]
        info = {
            "width": side * 8,
            "height": side * 8,
            "source": "test",
            "questions": [{"question": q, "answers": [a]} for q, a in asked],
        }
        writers[-1].add(
            f"{n:06d}",
            info,
            f"a {color} {shape}, number {n}",
            generator.integers(0, 1024, (side, side)).astype(np.uint16),
        )
    return finish_set(
        folder, writers, vq_fingerprint=fingerprint or shipped_fingerprint(), codebook_size=1024, downsampling=8
    )


def text_set(folder: Path, samples: int = 30, words: int = 60) -> Path:
    """`samples` texts of about `words` words."""
    (folder / PARTIAL).mkdir(parents=True)
    generator = np.random.default_rng(1)
    writer = ShardWriter(folder, 0)
    vocabulary = ["the", "with", "statement", "wraps", "a", "block", "of", "code", "and", "raises", "an", "error"]
    for n in range(samples):
        text = f"document {n}: " + " ".join(generator.choice(vocabulary, words))
        writer.add(f"{n:06d}", {"source": "test"}, text, None)
    return finish_set(folder, [writer])


def mixture_overrides(root: Path, *, chains: bool = False, **images: Any) -> list[str]:
    """Overrides for `load("train", ...)`: a text, t2i, i2t and vqa mixture below `root`, a very small model, no W&B.

    chains: leave the quickstart's source questions as it is, for a config that has none.
    """
    image_folder, texts = image_set(root / "images", **images), text_set(root / "texts")
    sources = {"text": texts, "t2i": image_folder, "i2t": image_folder, "vqa": image_folder}
    small = [
        "hidden_size=32",
        "intermediate_size=64",
        "num_hidden_layers=2",
        "num_attention_heads=2",
        "num_key_value_heads=1",
    ]
    return [
        *(f"data.{group}.{task}.path={path}" for task, path in sources.items() for group in ("sources", "heldout")),
        *(f"backbone.architecture.{s}" for s in small),
        "backbone.tokenizer_size=300",
        "data.seq_len=256",
        "data.global_batch=4",
        "data.streams=null",
        "data.image_loss=false",
        "train.micro_batch=2",
        "parallel.precision=fp32",
        "optimizer=adamw",  # Muon is not for tensor parallelism
        "optimizer.lr=1e-3",
        "data.sources.vqa.weight=0.9",
        "data.sources.vqa.questions_per_document=10",
        *([] if chains else ["~data.sources.questions"]),
        "tracker.wandb.mode=disabled",
        "data.workers=0",
        f"run.dir={root / 'run'}",
    ]
