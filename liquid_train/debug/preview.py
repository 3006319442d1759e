"""`liquid data inspect KEY=VALUE ...`: the first packed sequences of a training config, as the model would see them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import BatchLoader, open_sources
from liquid_train.data.tasks import task_names
from liquid_train.debug.token_text import ReadableDocument, documents
from liquid_train.generate.images import contact_sheet, decode, save_png
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.training.run_vocabulary import make_tokenizer, open_vocabulary

COLUMNS = 8  # of the strip of images


def preview(config: TrainJob, count: int, images: str | Path | None = None) -> None:
    """Print the first `count` sequences of the data order; with `images`, write a PNG of the images in them, in
    order.

    Raises UserError where a source cannot be read.
    """
    parts = ("decoder",) if images else ()
    vq = open_image_tokenizer(config.vq, parts)
    sets = open_sources(config.data, vq.fingerprint, vq.codebook_size)
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(config, sets, Path(folder))
        vocabulary = open_vocabulary(config, Path(folder), vq.codebook_size)
    data = replace(config.data, workers=0)
    steps = -(-count // config.data.global_batch)
    grids: list[np.ndarray] = []
    for batch in BatchLoader(data, config.seed, sets, vocabulary, rank=0, world=1, first_step=0, steps=steps):
        for number in sorted(batch.sequences):
            if number >= count:
                break
            sequence = batch.sequences[number]
            print(
                f"sequence {number} (step {batch.step + 1}): {sequence.documents} documents, {sequence.padding} of "
                f"{len(sequence.ids)} tokens empty"
            )
            for document in documents(sequence, vocabulary, task_names(config.data)):
                print(line(document))
                codes = document.codes()
                grids += [] if codes is None else [codes]
    if images and grids:
        same = [grid for grid in grids if grid.shape == grids[0].shape]
        save_png(Path(images), contact_sheet(list(decode(vq, np.stack(same))), COLUMNS))
        print(f"{images}: {len(same)} images")


def line(document: ReadableDocument) -> str:
    """One document: where it begins, what it is, and its text with what is learned between » and «."""
    where = (
        f"  {document.first:>6} {document.task:4} {document.name}: {document.tokens} tokens, {document.targets} targets"
    )
    return f"{where}\n         {document.text()!r}"
