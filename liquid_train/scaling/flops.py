"""Floating-point operations of a training step, for MFU (model FLOPs utilization; Chowdhery et al. 2022, arXiv
2204.02311, appendix B).

    step = 6 * (matrix parameters of the blocks) * tokens
         + 6 * (rows * width of the head) * target positions          the head runs on targets only
         + 6 * layers * heads * head_dim * sum over documents of length^2      attention: causal (half), per document

The embedding lookup multiplies nothing and is left out; recomputation under activation checkpointing does not count.
"""

from __future__ import annotations

import time

import torch
from torch import nn

# Dense bf16 peak of one device in FLOP/s, from the vendors' data sheets.
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def block_parameters(blocks: nn.Module) -> int:
    """Elements of the blocks' matrices (two-dimensional weights)."""
    return sum(p.numel() for p in blocks.parameters() if p.ndim == 2)


def step_flops(
    blocks: int, head: int, attention_width: int, layers: int, tokens: int, targets: int, sum_squared_lengths: int
) -> float:
    """FLOPs of forward and backward. blocks: matrix parameters; head: rows*width; attention_width: heads*head_dim;
    squares: sum of length^2."""
    return 6.0 * blocks * tokens + 6.0 * head * targets + 6.0 * layers * attention_width * sum_squared_lengths


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a device: the data sheet's for a known GPU, else what a large fp32 matrix product reaches here on this
    process's threads."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_BF16.items():
            if known in name:
                return peak
    a = torch.randn(1024, 1024, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started))
    return best
