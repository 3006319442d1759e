"""From a row of the source, and the codes of its image, to the samples that a shard holds for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_prep.encode.documents import cut_text
from data_prep.encode.hashes import with_text_hash
from data_prep.shard_set.plan import SetPlan
from data_prep.source import SourceRow

if TYPE_CHECKING:
    from data_prep.encode.encoder import Encoded

TASK_ROWS = 8  # at least, so that a process is not asked for every single row
TEXT_TASK_ROWS = 64


class NewSample(NamedTuple):
    """KEY.json, KEY.txt, KEY.codes.npy [rows, columns] and KEY.ids.npy [n] before they are written."""

    key: str
    info: dict[str, Any]
    text: str | None
    codes: np.ndarray | None
    ids: np.ndarray | None = None


def rows_per_task(batch_size: int | None) -> int:
    """Rows of one task; None for texts. A batch never crosses a task on a CPU, so codes may depend on it."""
    return TEXT_TASK_ROWS if batch_size is None else max(TASK_ROWS, 4 * batch_size)


def samples_of(plan: SetPlan, number: int, row: SourceRow, result: Encoded | None) -> list[NewSample]:
    """Row `number` of the set: one sample, or the pieces of a long text, or the documents of
    a row of token ids. result: the codes of its image, None for a row without one."""
    samples = _without_hash(plan, number, row, result)
    if "hashes" not in plan.recipe:
        return samples
    return [sample._replace(info=with_text_hash(sample.info, sample.text)) for sample in samples]


def _without_hash(plan: SetPlan, number: int, row: SourceRow, result: Encoded | None) -> list[NewSample]:
    key, info = row.key or f"{number:09d}", {**row.info, "source": plan.recipe["source"]["name"]}
    if result is not None:
        assert plan.downsampling is not None
        rows, columns = result.codes.shape
        info |= {**result.info, "width": columns * plan.downsampling, "height": rows * plan.downsampling}
        return [NewSample(key, info, row.text, result.codes)]
    if row.ids is not None:
        several = len(row.ids) > 1
        return [NewSample(f"{key}-{n}" if several else key, info, None, None, ids) for n, ids in enumerate(row.ids)]
    if row.text is None or plan.encoder is not None:
        return [NewSample(key, info, row.text, None)]
    pieces = list(cut_text(row.text, int(plan.recipe["max_characters"])))
    return [
        NewSample(key if len(pieces) == 1 else f"{key}-{part}", info, piece, None) for part, piece in enumerate(pieces)
    ]
