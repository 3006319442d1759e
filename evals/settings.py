"""Everything `liquid eval` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from liquid_train.config.fields import Section, setting
from liquid_train.config.log_settings import LogConfig
from liquid_train.generate.settings import trained_with
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.settings import FeaturesConfig, HeldoutConfig, LanguageConfig, VQAScoreConfig

SAMPLERS_VERSION = 1  # raised by whoever changes how images or answers are generated: all is then measured again


@dataclass
class JudgeConfig(VQAScoreConfig):
    """How a model is asked whether an image fits a text, and which other model is asked (evals/judges/vqa_model.py)."""

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
    shards: Annotated[
        str | None,
        setting(
            "shard set that metrics read: questions, captions, images", null="the run's own data.heldout", is_path=True
        ),
    ] = None
    train_shards: Annotated[
        str | None,
        setting(
            "for the blind baseline: what training answered to the question alone",
            null="the run's own training set; with shards=SET none",
            is_path=True,
        ),
    ] = None
    prompts: Annotated[
        str | None,
        setting("file of prompts, one a line", null="captions of the held-out set; of easy-VQA its 24", is_path=True),
    ] = None
    max_prompts: Annotated[int, setting("captions of the held-out set that become prompts", ge=1)] = 24
    images: Annotated[
        str | None,
        setting(
            "folder of image files: originals that generated images and the image tokenizer are compared with",
            null="held-out images as the image tokenizer decodes them",
            is_path=True,
        ),
    ] = None
    quality_reference: Annotated[int, setting("images that generated ones are compared with", ge=2)] = 1000
    output: Annotated[str | None, setting("a folder", null="evals/ in the run", is_path=True)] = None
    seed: Annotated[int, setting("of generated images and of everything that is sampled", ge=0, le=2**63 - 1)] = 0
    max_images: Annotated[int | None, setting("only the first N images of the set", ge=1, null="all")] = None
    images_per_prompt: Annotated[int, setting("images of each prompt; 0: none are generated", ge=0)] = 10
    guidance: Annotated[float, setting("classifier-free guidance; 1: none", ge=0, le=1000)] = 3.0
    temperature: Annotated[float, setting("of sampling; 0: greedy", ge=0, le=1000)] = 0.8
    top_k: Annotated[int | None, setting("only the k likeliest codes", ge=1, null="all")] = None
    metrics: Annotated[
        list[str],
        setting(
            "names (docs/evaluation.md), or import paths of your own; auto: all that need no files of their own and "
            "that the data allow",
            min_length=1,
        ),
    ] = field(default_factory=lambda: ["auto"])
    own: Annotated[
        dict[str, Any],
        setting("settings and files of metrics and benchmarks that have no keys here: own.NAME.KEY=VALUE"),
    ] = field(default_factory=dict)
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
    log: LogConfig = field(default_factory=LogConfig)
