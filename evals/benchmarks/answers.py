"""A model's answers to a published benchmark: scores with intervals, and the file that its evaluation server or program
takes.

    questions (benchmark_files.py) -> images through the VQ, greedy answers -> scores and prediction files
    (benchmark_scores.py)

Images are read, scaled and cut as `liquid tokenize tokenize.crop=center` does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from evals.benchmarks.question_files import Benchmark, check_left_out
from evals.benchmarks.scores import answered, prediction_files
from evals.settings import BenchmarksConfig
from liquid_train.errors import UserError
from liquid_train.generate.images import encode, load_image
from liquid_train.generate.text_sampler import answer
from liquid_train.image_tokenizer.preprocess import READ_ERRORS, reason
from liquid_train.measurement.measurement import Measurement, ModelHandle
from liquid_train.measurement.provenance import arrays_digest, texts_digest


def measure(handle: ModelHandle, benchmark: Benchmark, config: BenchmarksConfig, *, batch_size: int) -> Measurement:
    """Scores of one benchmark, none where its answers are not published. detail: {"files": {name: text}}. For one
    process.

    Raises UserError where more images cannot be read than benchmarks.max_bad allows.
    """
    if config.max_questions is not None:
        benchmark = replace(benchmark, items=benchmark.items[: config.max_questions])
    benchmark, codes = with_codes(handle, benchmark, config.max_bad)
    asked = [(codes[item.image], item.question + config.suffix) for item in benchmark.items]
    given = answer(
        handle.model,
        handle.vocabulary,
        asked,
        max_new_tokens=config.max_new_tokens,
        batch_size=batch_size,
        progress=lambda *p: handle.progress(benchmark.name, *p),
    )
    return answered(
        benchmark,
        given,
        config,
        data=arrays_digest(list(codes.values())),
        prompts=texts_digest([text for _, text in asked]),
        sampler={"greedy": None, "max_new_tokens": config.max_new_tokens},
        dtype=handle.dtype,
        files=prediction_files(benchmark, given),
    )


def with_codes(handle: ModelHandle, benchmark: Benchmark, max_bad: float) -> tuple[Benchmark, dict[Path, np.ndarray]]:
    """The benchmark without the questions whose image cannot be read, and every other image's codes [rows,
    columns]."""
    if len(handle.grid) != 2:
        raise UserError(
            "the model was trained on no images (liquid.json states no grid); train with a t2i, i2t or vqa source"
        )
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
    found = Benchmark(benchmark.name, [item for item in benchmark.items if item.image in codes], left_out)
    check_left_out(found, max_bad)
    return found, codes
