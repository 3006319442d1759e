"""`tokenize.batch_size=auto`: the fastest batch for a VQ, a size of image and a device.

On a GPU it is measured: the smallest batch within TOLERANCE of the best. On a CPU it follows from the size of one
layer's activations, by what benchmarks/vq_pass.py measures (small images gain from a batch, large ones do not): so
that two sets made with auto on two machines, or on one machine at two times, are the same bytes.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from data_prep.encode.encoder import BatchEncoder, one_exact_thread
from liquid_train.errors import UserError

CACHED_BYTES = 4 * 2**20  # of a layer's fp32 activations, for a CPU's cache
CPU_BATCH = 16  # at most
CUDA_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TOLERANCE = 0.15
ROUNDS = 3


def fastest_batch(encoder: BatchEncoder, width: int, height: int) -> int:
    """Images a batch, for images of width x height pixels."""
    if encoder.device.type == "cpu":
        activations = encoder.model.activation_bytes(width, height)
        return max(1, min(CPU_BATCH, CACHED_BYTES // activations))
    seconds: dict[int, float] = {}  # batch -> for one image
    with one_exact_thread():
        for batch in CUDA_BATCHES:
            pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
            try:
                encoder.encode(pixels)  # the first call prepares
                seconds[batch] = min(_seconds(encoder, pixels) for _ in range(ROUNDS)) / batch
            except torch.OutOfMemoryError:
                break
    if not seconds:
        raise UserError(
            f"tokenize.device={encoder.settings.device}: its memory does not hold one image of {width}x{height}; "
            "use a smaller tokenize.size"
        )
    fastest = min(seconds.values())
    return min(batch for batch, each in seconds.items() if each <= (1 + TOLERANCE) * fastest)


def _seconds(encoder: BatchEncoder, pixels: np.ndarray) -> float:
    started = time.perf_counter()
    encoder.to_numpy(encoder.encode(pixels))
    return time.perf_counter() - started
