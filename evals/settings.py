"""Everything `liquid eval` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from liquid_train.config.fields import Section, setting
from liquid_train.generate.settings import trained_with
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.settings import FeaturesConfig, HeldoutConfig, LanguageConfig, VQAScoreConfig

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
class JudgeConfig(VQAScoreConfig):
    """How a model is asked whether an image fits a text, and which other model is asked (evals/metrics/vqascore.py)."""

    model: Annotated[
        str | None,
        setting(
            "for metrics=[vqascore,genai_bench_vqascore]: folder of any VQA model of transformers",
            null="none",
            is_path=True,
        ),
    ] = None


@dataclass
class CLIPScoreConfig(Section):
    """For metrics=[clipscore]."""

    model: Annotated[str | None, setting("folder of a CLIP model", null="none", is_path=True)] = None
    prefix: Annotated[str, setting("before every text, as published")] = "A photo depicts "
    batch_size: Annotated[int, setting("images together; decides the speed, not the result", ge=1)] = 64


@dataclass
class ReferenceConfig(Section):
    """For metrics=[reference_quality]: real images with the prompts to generate from."""

    folder: Annotated[
        str | None,
        setting(
            "MJHQ-30K's (meta_data.json), or images with a .txt next to each; subfolders are categories",
            null="none",
            is_path=True,
        ),
    ] = None
    per_category: Annotated[int | None, setting("only the first N of each category", ge=1, null="all")] = None
    max_bad: Annotated[float, setting("share of images that may be left out (and are then named)", ge=0, lt=1)] = 0.0


@dataclass
class WISEConfig(Section):
    """For metrics=[wise]."""

    prompts: Annotated[str | None, setting("folder of WISE's three JSON files", null="none", is_path=True)] = None
    scores: Annotated[list[str], setting("a judge's JSON-lines files: scored without a checkpoint")] = field(
        default_factory=list
    )
    max_bad: Annotated[float, setting("share of prompts that may be left out (and are then named)", ge=0, lt=1)] = 0.0


@dataclass
class QuestionFiles(Section):
    """Files of one benchmark."""

    questions: Annotated[
        str | None, setting("its questions as published (pope: the folder of its splits)", null="none", is_path=True)
    ] = None
    images: Annotated[str | None, setting("folder with its images", null="none", is_path=True)] = None
    predictions: Annotated[
        str | None,
        setting("somebody's answers as the server takes them: scored without a checkpoint", null="none", is_path=True),
    ] = None


@dataclass
class AnnotatedFiles(QuestionFiles):
    """Files of one benchmark whose right answers lie in a file of their own."""

    annotations: Annotated[
        str | None,
        setting("its right answers", null="a test split: no score, only the file for the server", is_path=True),
    ] = None


@dataclass
class MMEFiles(Section):
    """MME's folders."""

    folder: Annotated[str | None, setting("that of existence/, count/, ...", null="none", is_path=True)] = None
    predictions: Annotated[
        str | None, setting("folder of SUBTASK.txt: scored without a checkpoint", null="none", is_path=True)
    ] = None


@dataclass
class BenchmarksConfig(Section):
    """For metrics=[vqav2,textvqa,gqa,pope,mme]: files as they are published."""

    suffix: Annotated[str, setting('after every question, such as " Answer with one word or phrase."')] = ""
    max_new_tokens: Annotated[int, setting("of an answer", ge=1)] = 16
    max_bad: Annotated[float, setting("share of questions that may be left out (and are then named)", ge=0, lt=1)] = 0.0
    max_questions: Annotated[int | None, setting("only the first N", ge=1, null="all")] = None
    vqav2: AnnotatedFiles = field(default_factory=AnnotatedFiles)
    textvqa: QuestionFiles = field(default_factory=QuestionFiles)
    gqa: QuestionFiles = field(default_factory=QuestionFiles)
    pope: QuestionFiles = field(default_factory=QuestionFiles)
    mme: MMEFiles = field(default_factory=MMEFiles)


@dataclass
class EvalJob(Section):
    """Metrics of a checkpoint, into evals/ of its run."""

    checkpoint: Annotated[
        str | None,
        setting(
            "a run (its newest checkpoint), a checkpoint, or a model/ folder",
            null="only files are scored (predictions, wise.scores)",
            is_path=True,
        ),
    ] = None
    watch: Annotated[
        str | None,
        setting(
            "in place of checkpoint: a run whose checkpoints are evaluated as they come, while it trains",
            null="none",
            is_path=True,
        ),
    ] = None
    watch_newest: Annotated[bool, setting("of several checkpoints that wait, only the newest")] = False
    watch_seconds: Annotated[float, setting("between two looks at the run", gt=0)] = 10.0
    shards: Annotated[str, setting("shard set with the questions", is_path=True)] = "data/quickstart/images-test"
    train_shards: Annotated[
        str | None,
        setting("for the blind baseline: what training answered to the question alone", null="none", is_path=True),
    ] = "data/quickstart/images-train"
    output: Annotated[str | None, setting("a folder", null="evals/ in the run", is_path=True)] = None
    seed: Annotated[int, setting("of generated images and of everything drawn at random", ge=0)] = 0
    max_images: Annotated[int | None, setting("only the first N images of the set", ge=1, null="all")] = None
    images_per_prompt: Annotated[int, setting("images of each caption; 0: none are generated", ge=0)] = 10
    guidance: Annotated[float, setting("classifier-free guidance; 1: none", ge=0)] = 3.0
    temperature: Annotated[float, setting("of sampling; 0: greedy", ge=0)] = 0.8
    top_k: Annotated[int | None, setting("only the k likeliest codes", ge=1, null="all")] = None
    metrics: Annotated[list[str], setting("what is measured (docs/evaluation.md explains each)", min_length=1)] = field(
        default_factory=lambda: list(OWN_METRICS)
    )
    sheet: Annotated[
        str | None,
        setting("paper: also write paper.md and paper.html; what lacks its files is only listed there", null="none"),
    ] = None
    genai_bench: Annotated[
        str | None,
        setting(
            "for metrics=[genai_bench]: folder of genai_image.json (or prompts.txt) and genai_skills.json",
            null="none",
            is_path=True,
        ),
    ] = None
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    caption_images: Annotated[int, setting("real images whose right and wrong captions are compared", ge=1)] = 500
    tokenizer_images: Annotated[int, setting("real images that are encoded and decoded again", ge=2)] = 200
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    vqascore: JudgeConfig = field(default_factory=JudgeConfig)
    clipscore: CLIPScoreConfig = field(default_factory=CLIPScoreConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    wise: WISEConfig = field(default_factory=WISEConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    batch_size: Annotated[int, setting("images or questions together; decides the speed, not the result", ge=1)] = 120
    device: Annotated[str, setting("auto: a GPU where there is one; else cpu, cuda, cuda:N")] = "auto"
    vq: VQSettings = field(default_factory=trained_with)

    def check(self, key: str) -> None:
        from evals.checks import check_eval

        check_eval(self)
