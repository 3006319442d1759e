"""Where the documents of a packed micro-batch lie: what attention needs to keep them apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STEPS_PER_DOUBLING = 4  # rectangle lengths: at most a quarter of a document's length is padding


@dataclass(frozen=True)
class DocumentPlan:
    """Where the documents of a flat row of N tokens lie.

    gather[b]: token numbers [documents, length] of rectangle b (padding repeats a document's last token).
    restore: [N], each token's place in the rectangles laid out flat, one after the other.
    starts: int32 [documents + 1], the first token of each document, and N. longest: tokens of the longest one.
    masks: what a kernel made of the plan, by sliding window, for the other layers.
    """

    gather: tuple[Tensor, ...]
    restore: Tensor
    starts: Tensor
    longest: int
    masks: dict[int | None, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_lengths(cls, lengths: list[int]) -> DocumentPlan:
        """Plan for documents that lie one after the other with these lengths."""
        groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
        start = 0
        for length in lengths:
            groups[padded_length(length)].append((start, length))
            start += length
        restore = torch.empty(start, dtype=torch.int64)
        gather, base = [], 0
        for width, documents in sorted(groups.items()):
            starts = torch.tensor([s for s, _ in documents]).unsqueeze(1)  # [documents, 1]
            counts = torch.tensor([n for _, n in documents]).unsqueeze(1)
            column = torch.arange(width).unsqueeze(0)  # [1, width]
            tokens = starts + torch.minimum(column, counts - 1)
            real = column < counts
            places = torch.arange(tokens.numel()).view_as(tokens) + base
            restore[tokens[real]] = places[real]
            gather.append(tokens)
            base += tokens.numel()
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(gather), restore, ends, max(lengths))

    def to(self, device: torch.device) -> DocumentPlan:
        gather = tuple(g.to(device, non_blocking=True) for g in self.gather)
        restore, starts = self.restore.to(device, non_blocking=True), self.starts.to(device, non_blocking=True)
        return DocumentPlan(gather, restore, starts, self.longest)


def padded_length(length: int) -> int:
    """The next of 8, 16, 24, 32, then four steps a doubling: 40, 48, 56, 64, 80, 96, ..."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 1 - (STEPS_PER_DOUBLING.bit_length() - 1)))
    return -(-length // step) * step
