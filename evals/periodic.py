"""What is measured while training: the same questions, prompts, images and seeds each time, shared out over all
ranks.

Metrics are those of evals/metrics/ that are `while_training`, as far as the settings ask for them and the held-out data
allow them. Each goes into evals/step-NNNNNNNN-NAME.json with its provenance. A metric that cannot be measured is
reported and does not end the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from evals.chosen import training_metrics
from evals.errors import NotMeasurable
from evals.inputs import TrainingInputs
from evals.sets import EvalSets
from liquid_train.errors import UserError
from liquid_train.files import dispensable
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.measurement.measurement import ModelHandle, alone, write_measurement
from liquid_train.training.settings import EvalsConfig
from liquid_train.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def evaluate(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    image_tokenizer: ImageTokenizer,
    config: EvalsConfig,
    *,
    sets: str | None,
    grid: tuple[int, ...],
    prompt: str,
    step: int,
    out_dir: Path,
    rank: int,
    world_size: int,
    last: bool = False,
    multiratio: Sequence[Sequence[int]] = (),
    settle: Callable[[], None] = alone,
) -> dict[str, float]:
    """Metrics by the name they are logged under, the same on every rank; a collective: every rank has the plain
    model.

    sets: the held-out shard set whose questions, captions and images are used, None for none. grid: rows and columns
    of codes; empty where the model has seen no images. prompt: suffix of a text-to-image prompt. multiratio: as
    ModelHandle's. settle: before any collective, as LiveModel's. last: measure also what is not due by its period.
    Rank 0 writes out_dir/samples/step-NNNNNNNN.png and .json and out_dir/evals/step-NNNNNNNN-NAME.json.
    """
    handle = ModelHandle(
        model, vocabulary, image_tokenizer, grid, prompt, rank, world_size, multiratio=multiratio, settle=settle
    )
    asked = [metric for metric in training_metrics(config) if metric.wanted(config)]
    due = [metric for metric in asked if last or step % config.periods.get(metric.name, 1) == 0]
    count = max((metric.images_wanted(config) for metric in due), default=0)
    inputs = TrainingInputs(config, handle, EvalSets.of(sets, vocabulary.codebook_size), count)
    metrics: dict[str, float] = {}
    for metric in due:
        try:
            metric.applies(inputs.sets)
            metric.prepare(inputs)
            measured = metric.measure(handle, inputs)
        except NotMeasurable as error:
            tell_once(metric.name, str(error))
            continue
        except UserError as error:  # found out alike by every rank
            tell(metric.name, str(error))
            continue
        metrics |= {f"eval/{key}": value.value for key, value in measured.values.items()}
        if rank == 0:
            metric.write_while_training(out_dir, step, inputs)
        if rank == 0 and measured.values:
            with dispensable(f"evals: {metric.name} of step {step}"):
                write_measurement(out_dir / "evals", metric.name, step, measured, metric.families)
    return metrics


def tell(name: str, why: str) -> None:
    log.warning("evals: %s could not be measured: %s", name, why)


@cache
def tell_once(name: str, why: str) -> None:
    """What the data do not allow is the same at every step."""
    tell(name, why)
