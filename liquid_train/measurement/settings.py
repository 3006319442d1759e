"""Settings of what both training and `liquid eval` measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Formatter


@dataclass
class FeaturesConfig:
    """The network that image distances look through; see evals/distances/features.py."""

    kind: str = "vq"  # vq, inception or hf
    path: str | None = None  # inception: its TorchScript file; hf: a model's folder
    resize: str = "clean"  # clean, legacy_pytorch or legacy_tensorflow
    cache: str | None = None  # a folder that keeps the features of reference images; None = computed each time


@dataclass
class QuestionPart:
    """Templates with the names of groups in braces, such as "what color is the {shape}?" and "{color}"."""

    question: str = ""
    answer: str = ""


def template_fields(template: str) -> set[str]:
    """Names in braces. Raises UserError for braces that are none."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


@dataclass
class VQAScoreConfig:
    """How a model is asked whether an image fits a text, as a whole or by parts; see
    evals/metrics/caption_parts.py."""

    question: str = 'Does this figure show "{text}"? Please answer yes or no.'
    answer: str = "Yes"
    batch_size: int = 64
    pattern: str | None = None  # regular expression whose named groups are the parts of a text; None = asked as a whole
    parts: list[QuestionPart] = field(default_factory=list)  # what is asked about them


@dataclass
class LanguageConfig:
    """What lm-evaluation-harness is asked for; see evals/metrics/language.py."""

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None  # a folder of task files (YAML, which may name Python functions: only trusted ones)
    shots: int | None = None  # solved examples before each question; None = as the task says
    limit: int | None = None  # only the first N documents of a task
    batch_size: int = 8


@dataclass
class HeldoutConfig:
    """For metrics=[heldout]: data.heldout of a run's config, with its seq_len, prompts and seed; see
    liquid_train/training/heldout.py."""

    run: str | None = None  # the folder of the run whose config it is; None = that of the checkpoint
    whole: bool = False  # every sample, not only max_samples of each source
    batches: int | None = None  # only so many micro-batches of packed rows
