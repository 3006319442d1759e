"""Are optimizer steps mixed? Every task's share of a step, over steps, against documents drawn independently."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from liquid_train.data.packing import PackedStream
from tests.data.test_data_properties import job, readers_of

MOST = 1.5  # times the variance of independent draws


@dataclass(frozen=True)
class Shape:
    """A mixture: by source its weight and the tokens of its documents, from, to."""

    seq_len: int
    weights: dict[str, float]
    tokens: dict[str, tuple[int, int]]
    most_padding: float


SHAPES = {
    # 64 codes an image; chains of ten questions, as i2t is no other than vqa to the packing
    "quickstart": Shape(
        1024,
        {"text": 0.1, "t2i": 10.0, "vqa": 0.9},
        {"text": (30, 1024), "t2i": (80, 105), "vqa": (150, 260)},
        most_padding=0.01,
    ),
    # 1,024 codes an image, 1:1:1
    "ladder": Shape(
        4096,
        {"text": 1.0, "t2i": 1.0, "vqa": 1.0},
        {"text": (30, 2500), "t2i": (1040, 1110), "vqa": (1040, 1120)},
        most_padding=0.005,
    ),
}


def lengths_of(shape: Shape, generator: np.random.Generator) -> dict[str, list[int]]:
    return {name: generator.integers(*bounds, 5000).tolist() for name, bounds in shape.tokens.items()}


def independent_shares(shape: Shape, batch: int, generator: np.random.Generator, steps: int = 2000) -> np.ndarray:
    """[steps, sources]: shares of the tokens of batches whose documents are drawn independently."""
    names = list(shape.tokens)
    p = np.array([shape.weights[n] for n in names])
    mean = sum(p[i] / p.sum() * np.mean(shape.tokens[n]) for i, n in enumerate(names))
    documents = round(batch * shape.seq_len / mean)
    drawn = generator.choice(len(names), (steps, documents), p=p / p.sum())
    low, high = (np.array([shape.tokens[n][k] for n in names])[drawn] for k in (0, 1))
    tokens = generator.integers(low, high)
    shares = np.stack([(tokens * (drawn == i)).sum(1) for i in range(len(names))], axis=1)
    return shares / shares.sum(1, keepdims=True)


def shares_of_steps(
    shape: Shape, streams: int, window: int, batch: int, steps: int, lengths: dict[str, list[int]]
) -> tuple[np.ndarray, float]:
    """([steps, sources] shares of the tokens of real batches, share of padding) from the first step on."""
    names = list(shape.tokens)
    config = job(lengths, streams, weights=shape.weights, seq_len=shape.seq_len, window=window)
    readers = readers_of(config, lengths, most_samples=256)
    rows = [PackedStream(s, readers, shape.seq_len, window, 0) for s in range(streams)]
    found = np.zeros((steps, len(names)))
    for g in range(steps * batch):
        sequence = rows[g % streams].next()
        # lengths may end with that of the padding
        for name, length in zip(sequence.names, sequence.lengths, strict=False):
            found[g // batch, names.index(name.partition("/")[0])] += length
    return found / found.sum(1, keepdims=True), 1 - found.sum() / (steps * batch * shape.seq_len)


@pytest.mark.parametrize("window", [4, 16, 64])
@pytest.mark.parametrize(("streams", "batch", "steps"), [(1, 8, 160), (8, 8, 160), (256, 64, 40)])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_tasks_share_varies_by_chance_alone(name: str, streams: int, batch: int, steps: int, window: int) -> None:
    shape, generator = SHAPES[name], np.random.default_rng(1)
    found, padding = shares_of_steps(shape, streams, window, batch, steps, lengths_of(shape, generator))
    expected = independent_shares(shape, batch, generator)
    ratio = found.var(0) / expected.var(0)
    assert (ratio < MOST).all(), dict(zip(shape.tokens, ratio.round(2), strict=True))
    assert padding < shape.most_padding
    # no drift either: the first steps are like all others
    early = found[: max(4, steps // 10)].mean(0)
    assert early == pytest.approx(expected.mean(0), abs=4 * float(expected.std(0).max()) / 2)
