"""Images of a benchmark's questions through the image tokenizer of the measured model.

They are read, scaled and cut as `liquid tokenize tokenize.crop=center` does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from evals.generated import require_grid
from evals.questions.collector import BenchmarkSet, check_left_out
from liquid_train.generate.images import encode, load_image
from liquid_train.image_tokenizer.preprocess import READ_ERRORS, reason
from liquid_train.measurement.measurement import ModelHandle


def with_codes(
    handle: ModelHandle, benchmark: BenchmarkSet, max_bad: float
) -> tuple[BenchmarkSet, dict[Path, np.ndarray]]:
    """The benchmark without the questions whose image cannot be read, and every other image's codes [rows,
    columns]."""
    require_grid(handle)
    sizes = [handle.usual_size, *((width, height) for width, height in handle.multiratio)]
    paths = list(dict.fromkeys(item.image for item in benchmark.items))
    codes: dict[Path, np.ndarray] = {}
    why: dict[Path, str] = {}
    for done, path in enumerate(paths, 1):
        try:
            codes[path] = encode(handle.image_tokenizer, load_image(path, sizes)[None])[0]
        except READ_ERRORS as error:
            why[path] = reason(error)
        handle.progress("images", done, len(paths))
    left_out = {key: list(names) for key, names in benchmark.left_out.items()}
    for item in benchmark.items:
        if item.image in why:
            left_out.setdefault(why[item.image], []).append(f"{item.image.name} of question {item.id}")
    found = replace(benchmark, items=[item for item in benchmark.items if item.image in codes], left_out=left_out)
    check_left_out(found, max_bad)
    return found, codes
