"""Everything `liquid eval` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.settings import FeaturesConfig, HeldoutConfig, LanguageConfig, VQAScoreConfig


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


# Names that config/checks.py and cli.py still ask for; the metrics themselves are found by evals/chosen.py
class _Names(tuple[str, ...]):
    """Every name is one of them: evals/chosen.py says which are none."""

    def __contains__(self, name: object) -> bool:
        return True


METRICS = _Names()
BENCHMARKS = ("vqav2", "textvqa", "gqa", "pope", "mme")  # those with keys of their own in BenchmarksConfig


SAMPLERS_VERSION = 1  # raised by whoever changes how images or answers are drawn: every result is then measured again


# what each page of numbers shows: conf/sheet/
SHEETS = {"paper": ("reference_quality", "genai_bench_vqascore", *BENCHMARKS, "language")}


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
    """Published benchmarks from local files; evals/benchmarks/ says what is in each."""

    suffix: str = ""  # after every question
    max_new_tokens: int = 16  # of an answer
    max_bad: float = 0.0  # share of questions that may be left out (and are then named)
    max_questions: int | None = None  # only the first N
    vqav2: AnnotatedFiles = field(default_factory=AnnotatedFiles)
    textvqa: QuestionFiles = field(default_factory=QuestionFiles)
    gqa: QuestionFiles = field(default_factory=QuestionFiles)
    pope: QuestionFiles = field(default_factory=QuestionFiles)
    mme: MMEFiles = field(default_factory=MMEFiles)


@dataclass
class EvalJob:
    """Everything `liquid eval` reads."""

    checkpoint: str | None = None  # None: what is scored is in files already
    watch: str | None = None  # a run whose checkpoints are evaluated as they come
    watch_newest: bool = False  # of several that wait only the newest
    watch_seconds: float = 10.0  # between two looks at the run
    # the shard set that metrics read: questions, captions, images; None = the run's own data.heldout
    shards: str | None = None
    # for vqa's blind baseline, answers by the question alone; None = where `shards` has no value the run's own training
    train_shards: str | None = None
    prompts: str | None = None  # a file of prompts, one a line; None = captions of the held-out set
    max_prompts: int = 24  # captions of the held-out set that become prompts
    # a folder of image files: the originals that generated images and the image tokenizer are compared with; None =
    # held-out images as the VQ decodes them
    images: str | None = None
    quality_reference: int = 1000  # images of `images` or of the held-out set that generated ones are compared with
    output: str | None = None  # a folder; None = evals/ in the run
    batch_size: int = 64
    seed: int = 0
    images_per_prompt: int = 10
    guidance: float = 3.0
    temperature: float = 0.8
    top_k: int | None = None
    max_images: int | None = None  # only the first N images of the set
    # names, or import paths of one's own; auto: those that need no files of their own, as far as the data allow them
    metrics: list[str] = field(default_factory=lambda: ["auto"])
    # by name: settings of metrics, and files of benchmarks, that have no keys of their own; docs/extending.md
    own: dict[str, Any] = field(default_factory=dict)
    sheet: str | None = None  # paper: also write paper.md and paper.html, and only list there what lacks its files
    genai_bench: str | None = None  # the folder of GenAI-Bench's prompts and skill tags
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    caption_images: int = 500  # real images whose right and wrong captions are compared
    tokenizer_images: int = 200  # real images that are encoded and decoded again
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    vqascore: JudgeConfig = field(default_factory=JudgeConfig)
    clipscore: CLIPScoreConfig = field(default_factory=CLIPScoreConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    wise: WISEConfig = field(default_factory=WISEConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    device: str = "auto"
    vq: VQSettings = field(default_factory=VQSettings)
