"""From a row of the source, and the codes of its image, to the samples that a shard holds for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_prep.encode.documents import cut
from data_prep.shard_set.plan import Plan
from data_prep.sources.base import Item

if TYPE_CHECKING:
    from data_prep.encode.encoder import Encoded

TASK_ROWS = 8  # at least, so that a process is not asked for every single row
TEXT_TASK_ROWS = 64


class NewSample(NamedTuple):
    """KEY.json, KEY.txt and KEY.codes.npy [rows, columns] before they are written."""

    key: str
    info: dict[str, Any]
    text: str | None
    codes: np.ndarray | None


def task_rows(batch_size: int | None) -> int:
    """Rows of one task; None for texts. A batch never crosses a task on a CPU, so codes may depend on it."""
    return TEXT_TASK_ROWS if batch_size is None else max(TASK_ROWS, 4 * batch_size)


def samples_of(plan: Plan, row: int, item: Item, result: Encoded | None) -> list[NewSample]:
    """One sample, or the pieces of a long text. result: the image's codes, None for a row without one."""
    key, info = item.key or f"{row:09d}", {**item.info, "source": plan.recipe["source"]["name"]}
    if result is not None:
        assert plan.downsampling is not None
        rows, columns = result.codes.shape
        info |= {**result.info, "width": columns * plan.downsampling, "height": rows * plan.downsampling}
        return [NewSample(key, info, item.text, result.codes)]
    if item.text is None or plan.encoder is not None:
        return [NewSample(key, info, item.text, None)]
    pieces = list(cut(item.text, int(plan.recipe["max_characters"])))
    return [
        NewSample(key if len(pieces) == 1 else f"{key}-{number}", info, piece, None)
        for number, piece in enumerate(pieces)
    ]
