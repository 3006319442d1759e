"""The schema of everything that is measured: the group evals of a training config, and the parts of `liquid eval`'s
config."""

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
class JudgeConfig(VQAScoreConfig):
    """The same, with another model to ask besides the one that is measured; see evals/metrics/vqascore.py."""

    model: str | None = None  # its folder in Hugging Face format


@dataclass
class CLIPScoreConfig:
    """See evals/metrics/clipscore.py."""

    model: str | None = None  # the folder of a CLIP model
    prefix: str = "A photo depicts "  # before every text, as published
    batch_size: int = 64


@dataclass
class ReferenceConfig:
    """Real images with the prompts to draw for them; see evals/metrics/reference_quality.py."""

    folder: str | None = None
    per_category: int | None = None  # only the first N images of each category
    max_bad: float = 0.0  # share of images that may be left out (and are then named)


@dataclass
class WISEConfig:
    """See evals/metrics/wise.py."""

    prompts: str | None = None  # the folder of the three published JSON files
    scores: list[str] = field(default_factory=list)  # a judge's JSON-lines files: scored without a model
    max_bad: float = 0.0  # share of prompts that may be left out (and are then named)


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


# what is measured while training: evals/periodic.py
PERIODIC = ("vqa", "grid", "image_quality", "self_vqascore", "captions", "language")


@dataclass
class EvalsConfig:
    every: int = 0  # steps between evaluations while training; 0 = never
    # steps between measurements of those that cost more; the others: each time
    periods: dict[str, int] = field(default_factory=dict)
    vqa_samples: int = 100  # images of the periodic VQA accuracy
    images: int = 12  # images of the periodic grid
    prompts: list[str] = field(default_factory=list)
    guidance: float = 3.0
    top_k: int | None = None
    temperature: float = 0.8
    # images whose distance from real ones is measured, the grid's among them; 0 = no distances
    quality_images: int = 0
    quality_reference: int = 256  # real images they are compared with
    caption_images: int = 0  # real images whose right and wrong captions the model is asked about
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    vqascore: VQAScoreConfig = field(default_factory=VQAScoreConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)


# what each is: evals/suite.py
OWN_METRICS = ("vqa", "t2i", "image_quality", "self_vqascore", "captions", "image_tokenizer")
# from files as they are published: evals/benchmarks/question_files.py
BENCHMARKS = ("vqav2", "textvqa", "gqa", "pope", "mme")
METRICS = (
    *OWN_METRICS,
    "heldout",
    "vqascore",
    "clipscore",
    "reference_quality",
    "genai_bench",
    "genai_bench_vqascore",
    "wise",
    *BENCHMARKS,
    "language",
)
# Raised by whoever changes what a metric measures: results of an older version are then measured again. The samplers'
# counts for all of them
METRIC_VERSIONS = dict.fromkeys(METRICS, 1)
SAMPLERS_VERSION = 1
# what each page of numbers shows: conf/sheet/
SHEETS = {"paper": ("reference_quality", "genai_bench_vqascore", *BENCHMARKS, "language")}
READING = ("vqa", "image_quality", "captions")  # those that read shards, and vqa train_shards
# those that measure images_per_prompt images of each caption
DRAWING = ("t2i", "image_quality", "self_vqascore", "vqascore", "clipscore")


@dataclass
class QuestionFiles:
    questions: str | None = None
    images: str | None = None  # the folder with the images
    predictions: str | None = None  # answers as the server or program takes them: scored without a model


@dataclass
class AnnotatedFiles(QuestionFiles):
    annotations: str | None = None  # None: a test split; no score, only the file for the server


@dataclass
class MMEFiles:
    folder: str | None = None
    predictions: str | None = None  # the folder of SUBTASK.txt: scored without a model


@dataclass
class BenchmarksConfig:
    """Published benchmarks from local files; evals/benchmarks/question_files.py says what is in each."""

    suffix: str = ""  # after every question
    max_new_tokens: int = 16  # of an answer
    max_bad: float = 0.0  # share of questions that may be left out (and are then named)
    max_questions: int | None = None  # only the first N
    vqav2: AnnotatedFiles = field(default_factory=AnnotatedFiles)
    textvqa: QuestionFiles = field(default_factory=QuestionFiles)
    gqa: QuestionFiles = field(default_factory=QuestionFiles)
    pope: QuestionFiles = field(default_factory=QuestionFiles)
    mme: MMEFiles = field(default_factory=MMEFiles)
