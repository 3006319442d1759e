"""padded_sdpa (liquid_train.model.attention), which gathers documents into padded batches, against a block-diagonal
mask over the packed row.

Baseline: torch's scaled_dot_product_attention with a boolean [seq_len, seq_len] mask of the same documents, which is
what transformers builds for packed rows on a CPU. Same documents, same tensors, forward and backward, interleaved,
median of 5.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liquid_train.data.document_plan import DocumentPlan
from liquid_train.model.attention import packed_attention

HEADS, HEAD_DIM, ROWS, SEQ_LEN, REPEATS = 5, 32, 2, 1024, 5
LENGTHS = [80, 120, 81, 79, 118, 82, 83, 119, 80, 78, 104]  # of one row, as the quickstart packs them


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def seconds(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run().square().mean().backward()
    return time.perf_counter() - started


def main() -> None:
    assert sum(LENGTHS) == SEQ_LEN
    torch.manual_seed(0)
    q, k, v = (torch.randn(ROWS, HEADS, SEQ_LEN, HEAD_DIM, requires_grad=True) for _ in range(3))
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = (document[:, None] == document[None, :]) & torch.ones(SEQ_LEN, SEQ_LEN, dtype=torch.bool).tril()
    plan = DocumentPlan.from_lengths(LENGTHS * ROWS)
    module = nn.Module()

    def gathered() -> Tensor:
        return packed_attention(module, q, k, v, None, document_plan=plan)[0]

    def baseline() -> Tensor:
        return masked(q, k, v, mask)

    torch.testing.assert_close(gathered(), baseline(), atol=1e-5, rtol=1e-5)
    times: dict[str, list[float]] = {"gathered": [], "masked": []}
    for _ in range(REPEATS + 1):  # the first round warms up
        times["masked"].append(seconds(baseline))
        times["gathered"].append(seconds(gathered))
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    print(f"attention, {ROWS} x {SEQ_LEN} tokens, {len(LENGTHS)} documents a row, {torch.get_num_threads()} thread(s)")
    print(
        f"  block mask {medians['masked'] * 1e3:.1f} ms, gathered {medians['gathered'] * 1e3:.1f} ms, ratio "
        f"{medians['masked'] / medians['gathered']:.2f}"
    )


if __name__ == "__main__":
    main()
