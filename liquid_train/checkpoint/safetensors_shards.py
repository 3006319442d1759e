"""Weights in Hugging Face format, written file by file: at most one file's tensors are in memory.

One model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json, as transformers writes and
reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from liquid_train.files import write_synced


@dataclass(frozen=True)
class ShardPlan:
    """Which tensors go into which file, in their order in the model."""

    names: list[list[str]]  # of each file's tensors
    elements: int  # of all tensors
    size: int  # of all tensors, in bytes

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Tensor]], shard_gib: float) -> ShardPlan:
        """Files of at most shard_gib * 2**30 bytes; a larger tensor gets a file of its own. Only shapes and dtypes are
        read, so meta tensors suffice.

        Consecutive tensors stay together, so that a stream of tensors fills one file at a time.
        """
        names: list[list[str]] = []
        elements = size = filled = 0
        for name, tensor in tensors:
            own = tensor.numel() * tensor.element_size()
            if not names or filled + own > shard_gib * 2**30:
                names.append([])
                filled = 0
            names[-1].append(name)
            filled += own
            size += own
            elements += tensor.numel()
        return cls(names, elements, size)

    def file(self, number: int) -> str:
        """Name of file `number` (from 0)."""
        count = len(self.names)
        return SAFE_WEIGHTS_NAME if count == 1 else SAFE_WEIGHTS_NAME.replace(".", f"-{number + 1:05d}-of-{count:05d}.")

    def write_file(self, folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
        """Write one file; OSError where it cannot be written."""
        path = folder / self.file(number)
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        except SafetensorError as error:  # what safetensors turns an OSError into
            raise OSError(f"{path}: {error}") from error
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors makes files readable for their owner only

    def write_index(self, folder: Path) -> None:
        """Write the index that maps each tensor to its file; none where there is one file."""
        if len(self.names) > 1:
            weight_map = {name: self.file(number) for number, names in enumerate(self.names) for name in names}
            index = {"metadata": {"total_parameters": self.elements, "total_size": self.size}, "weight_map": weight_map}
            write_synced(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2))
