"""Language benchmarks by lm-evaluation-harness: what the model still knows of text, with the image rows in its softmax
and without.

    language/TASK/METRIC      over text ids only: as the backbone was before it had image rows
    language_all/TASK/METRIC  over all rows: what is lost where probability goes to images

Tasks are the harness's own, or YAML files of language.include_path; data sets are read from this machine
(HF_DATASETS_OFFLINE=0 allows the hub). Documents begin as they do in training: with bos, where the tokenizer has one.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.identity import folder_identity
from evals.inputs import Inputs
from evals.metric import Metric
from evals.metrics import METRICS
from evals.sets import EvalSets
from liquid_train.errors import UserError
from liquid_train.measurement.intervals import Z
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, bare
from liquid_train.measurement.provenance import Provenance, texts_digest
from liquid_train.measurement.settings import LanguageConfig
from liquid_train.packages import missing_package

if TYPE_CHECKING:
    from liquid_train.training.settings import EvalsConfig

NAMES = {True: "language", False: "language_all"}  # by whether image rows are masked


@METRICS.register("language")
class Language(Metric):
    """The tasks of language.tasks."""

    needs = {"language.tasks": "[...], such as [hellaswag,arc_easy]"}
    while_training = True

    def applies(self, sets: EvalSets) -> None:
        """The harness has data of its own."""

    def identity(self) -> Any:
        return [asdict(self.job.language), folder_identity(self.job.language.include_path)]

    def read(self) -> None:
        check_language(self.job.language)

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        return language(handle, inputs.language, check_language(inputs.language))

    def wanted(self, settings: EvalsConfig) -> bool:
        return bool(settings.language.tasks)


def check_language(config: LanguageConfig) -> Any:
    """The harness's tasks. Raises UserError where it is missing, or a task is unknown."""
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    # the harness would fork a process that trains, or holds a GPU, to resample
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        manager = task_manager(config.include_path)
    except ImportError as error:
        raise UserError(missing_package("metrics: language", f"lm-evaluation-harness ({error})", "language")) from error
    unknown = [task for task in config.tasks if not manager.match_tasks([task])]
    if unknown:
        where = f"language.include_path={config.include_path} and the harness"
        raise UserError(
            f"language.tasks: {', '.join(unknown)}: no such task in {where}; lm-eval ls tasks lists the harness's own"
        )
    return manager


@cache
def task_manager(include_path: str | None) -> Any:
    """It looks through all of the harness's files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def language(handle: ModelHandle, config: LanguageConfig, manager: Any) -> Measurement:
    """All tasks, once over text ids only and once over all rows; a collective. Raises UserError where a task's data is
    not there."""
    values: dict[str, Value] = {}
    prompts: list[str] = []
    for masked, prefix in NAMES.items():
        found, prompts = run_harness(handle, config, manager, masked)
        values |= {f"{prefix}/{key}": value for key, value in found.items()}
    provenance = Provenance(
        n=len(prompts),
        prompts=texts_digest(prompts),
        sampler={"shots": config.shots},
        features=f"lm-evaluation-harness {version('lm-eval')}",
        dtype=handle.dtype,
    )
    warnings = (
        [f"only the first {config.limit} documents of each task (language.limit): not the published score"]
        if config.limit is not None
        else []
    )
    return Measurement(values, provenance, warnings=warnings)


def run_harness(
    handle: ModelHandle, config: LanguageConfig, manager: Any, masked: bool
) -> tuple[dict[str, Value], list[str]]:
    """(values, digests of the prompts in the tasks' order), on every rank."""
    from lm_eval import simple_evaluate

    handle.progress(NAMES[masked], 0, 1)
    try:
        with own_random_state(handle):
            found = simple_evaluate(
                language_model(handle, config.batch_size, masked),
                tasks=list(config.tasks),
                num_fewshot=config.shots,
                limit=config.limit,
                task_manager=manager,
                bootstrap_iters=1000,
            )
    except OSError as error:  # datasets' errors of a file or a connection that is not there
        raise UserError(
            f"language.tasks={','.join(config.tasks)}: a task's data cannot be read: {error}; give local files with "
            "language.include_path"
        ) from error
    handle.progress(NAMES[masked], 1, 1)
    measured = (task_values(found), prompt_digests(found)) if found is not None else None  # None but on rank 0
    if handle.world_size > 1:
        import torch.distributed as dist

        handle.settle()
        shared = [measured]
        dist.broadcast_object_list(shared)
        measured = shared[0]
    assert measured is not None
    return measured


def prompt_digests(found: dict[str, Any]) -> list[str]:
    """One a document, whichever rank it was given to."""
    ordered = ((task, sorted(samples, key=lambda s: s["doc_id"])) for task, samples in sorted(found["samples"].items()))
    return [f"{task} {s['prompt_hash']} {s['target_hash']}" for task, samples in ordered for s in samples]


@contextmanager
def own_random_state(handle: ModelHandle) -> Iterator[None]:
    """The harness seeds every generator; whoever asked for a measurement goes on with his own."""
    import torch

    device = handle.model.device
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def language_model(handle: ModelHandle, batch_size: int, masked: bool) -> Any:
    """The harness's wrapper of the model, whose image rows never win where `masked`; every rank answers its share of
    the documents."""
    import torch
    import torch.distributed as dist
    from lm_eval.models.huggingface import HFLM

    from liquid_train.data.sequences import prompt_ids

    vocabulary = handle.vocabulary

    class Ranks(HFLM):
        def all_gather(self, tensor: Any) -> Any:
            handle.settle()
            parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
            dist.all_gather(parts, tensor)
            return torch.stack(parts)

        def barrier(self) -> None:
            if self.world_size > 1:
                handle.settle()
                dist.barrier()

    class TextOnly(Ranks):
        def _model_call(self, *args: Any, **kwargs: Any) -> Any:
            logits = super()._model_call(*args, **kwargs)
            logits[..., vocabulary.text_size :] = -math.inf
            return logits

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            return super()._model_generate(
                *args, suppress_tokens=list(range(vocabulary.text_size, vocabulary.rows)), **kwargs
            )

    begins_with_bos = bool(prompt_ids({}, "text", vocabulary.tokenizer))
    kind = TextOnly if masked else Ranks
    made = kind(
        pretrained=handle.model, tokenizer=vocabulary.tokenizer, batch_size=batch_size, add_bos_token=begins_with_bos
    )
    # given a model, the harness takes itself for the only process
    made._rank, made._world_size = handle.rank, handle.world_size
    return made


def task_values(found: dict[str, Any]) -> dict[str, Value]:
    """TASK/METRIC, and TASK/METRIC/FILTER for a filter of the harness; intervals from its standard errors."""
    values = {}
    for task, row in found["results"].items():
        members = found.get("group_subtasks", {}).get(task) or [task]
        n = sum(found["n-samples"][member]["effective"] for member in members if member in found["n-samples"])
        for key, value in row.items():
            metric, _, kind = key.partition(",")
            if not isinstance(value, (int, float)) or not kind or metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr,{kind}")
            name = f"{task}/{metric}" + ("" if kind == "none" else f"/{kind}")
            if isinstance(error, (int, float)):
                values[name] = Value(
                    float(value), n, value - Z * error, value + Z * error, "normal 95%, the harness's standard error"
                )
            else:
                values[name] = bare(value, n, "the harness gives none")
    return values
