"""Where the documents of a packed micro-batch lie: what attention needs to keep them apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STEPS_PER_DOUBLING = 4  # of padded lengths: the padding is at most a quarter of a document's length


@dataclass(frozen=True)
class DocumentPlan:
    """Where the documents of a flat row of N tokens lie, and how they are gathered into padded batches."""

    # one entry a padded batch: token numbers int64 [documents, padded length]; padding repeats the last token
    gather: tuple[Tensor, ...]
    restore: Tensor  # int64 [N]: each token's place in all padded batches, flattened one after the other
    starts: Tensor  # int32 [documents + 1]: the first token of each document, then N
    longest: int  # tokens of the longest document
    # by sliding window: the mask that a kernel built from the plan at the first layer, for the other layers
    masks: dict[int | None, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_lengths(cls, lengths: list[int]) -> DocumentPlan:
        """The plan for documents of these lengths, one after the other."""
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
        *gather, restore, starts = (moved(t, device) for t in (*self.gather, self.restore, self.starts))
        return DocumentPlan(tuple(gather), restore, starts, self.longest)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; to a GPU through pinned memory, so that the host does not wait for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def padded_length(length: int) -> int:
    """The length that a document is padded to: the next of 8, 16, 24, 32, then four steps a doubling: 40, 48, 56, 64,
    80, 96, ..."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 1 - (STEPS_PER_DOUBLING.bit_length() - 1)))
    return -(-length // step) * step
