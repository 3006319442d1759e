"""What can be known before training of documents that no sequence has room for, and of keys that do not exist: from
the index alone, before a model is built."""

from __future__ import annotations

from liquid_train.data.sample_table import image_lengths
from liquid_train.data.settings import DataConfig
from liquid_train.data.shards import ShardSet
from liquid_train.data.tasks import find_task
from liquid_train.errors import UserError
from liquid_train.vocabulary import Vocabulary


def check_fit(data: DataConfig, sets: dict[str, ShardSet], vocabulary: Vocabulary) -> None:
    """Raise UserError for a source of which data.seq_len drops all images, or a larger share than data.max_dropped."""
    for name, source in data.sources.items():
        grids = image_lengths(sets[name].index) if source.weight > 0 else []
        task = find_task(source.task, f"data.sources.{name}.task")
        lengths = {(r, c): task.shortest(r, c, data, vocabulary.tokenizer) for r, c, _ in grids}
        images = sum(count for *_, count in grids)
        long = sum(count for rows, columns, count in grids if lengths[rows, columns] > data.seq_len)
        if long and (long == images or long > data.max_dropped * images):
            rows, columns = max(lengths, key=lambda grid: lengths[grid])
            whole = "all" if long == images else f"{long:,} of the"
            raise UserError(
                f"data.seq_len={data.seq_len}: too short for {whole} {images:,} images of data.sources.{name}: one of "
                f"{rows * columns:,} codes makes a document of at least {lengths[rows, columns]:,} tokens, and an "
                f"image is never cut; give data.seq_len={lengths[rows, columns]} or more, or smaller images"
            )


def check_skip(data: DataConfig, sets: dict[str, ShardSet]) -> list[str]:
    """Raise UserError for a key of data.skip that its source does not have. Returns a line for every source whose
    index does not know its keys."""
    lines = []
    for name, source in data.sources.items():
        asked = {key for of, _, key in (skipped.partition("/") for skipped in data.skip) if of == name}
        if not asked:
            continue
        missing = sets[name].missing_keys(asked)
        if missing is None:
            lines.append(
                f"data.skip: whether data.sources.{name} has these keys is not known: {source.path} is of an older "
                f"version; `liquid data index {source.path}` makes it known"
            )
        elif missing:
            raise UserError(
                f"data.skip={name}/{min(missing)}: no such sample in {source.path}; `liquid run replay` and `liquid "
                "data inspect` print keys as they are"
            )
    return lines
