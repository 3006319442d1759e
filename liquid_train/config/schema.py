"""The typed schema of conf/: what every key is called, its type, its default, and the checks across keys.

Hydra composes yaml files and overrides; `load` merges the result into these dataclasses, so that a key that does not
exist or a value of the wrong type ends the program with one message before any work. Defaults here are those of an
empty config; conf/<job>.yaml and its groups say what a job really uses.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from liquid_train.config.evaluation import (
    OWN_METRICS,
    BenchmarksConfig,
    CLIPScoreConfig,
    EvalsConfig,
    FeaturesConfig,
    HeldoutConfig,
    JudgeConfig,
    LanguageConfig,
    ReferenceConfig,
    WISEConfig,
)
from liquid_train.errors import UserError

TASKS = ("text", "t2i", "i2t", "vqa", "chat")


@dataclass
class RunConfig:
    name: str = "default"
    dir: str = "runs/${run.name}"  # the same on every rank: no time stamp in it


@dataclass
class LaunchConfig:
    nproc: str = "auto"  # processes on this machine: a number, or auto = one a GPU, else cpu_nproc
    cpu_nproc: int = 1  # what auto means without a GPU


@dataclass
class VQSettings:
    """Where the image tokenizer's files are; `package:` paths lie inside the installed package."""

    config: str = "package:weights/vq_easy/vqgan.yaml"
    checkpoint: str = "package:weights/vq_easy/model.safetensors"


@dataclass
class BackboneConfig:
    path: str | None = None  # a folder in HF format (weights, config, tokenizer); None = built from `architecture`
    init: str = "random"  # pretrained (needs path) or random
    # transformers config: model_type and its fields; vocab_size: embedding rows before the codes, None = as many as
    # tokenizer entries
    architecture: dict[str, Any] = field(default_factory=dict)
    # a folder with a tokenizer in HF format; None = that of `path`, or a BPE trained on the training text
    tokenizer: str | None = None
    tokenizer_size: int = 1024  # entries of that BPE
    special_tokens: list[str] | None = None  # three unused tokenizer entries that become <boi>, <eoi>, <unconditional>
    # image rows of a pretrained model: mean (of the text rows), normal, or codebook (the VQ's, projected)
    image_init: str = "mean"


@dataclass
class SourceConfig:
    path: str = "???"
    task: str = "???"
    weight: float = 1.0  # share of documents (or of tokens: data.weight_unit), relative to the other sources
    max_epochs: float | None = None  # passes over it, then the other sources take over its share; None = endless
    questions_per_document: int = 1  # vqa: turns chained after one image
    max_samples: int | None = None  # held-out sources: only the first N samples


@dataclass
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    heldout: dict[str, SourceConfig] = field(default_factory=dict)
    seq_len: int = 1024  # tokens of a packed sequence
    global_batch: int = 8  # sequences of one optimizer step, over all ranks
    streams: int | None = None  # canonical streams; None = global_batch
    workers: int = 1  # loader processes of each rank; 0 = none
    window: int = 8  # sequences that are packed together
    unconditional: float = 0.1  # share of t2i documents whose caption is replaced by <unconditional>
    prompts: list[str] = field(default_factory=lambda: [" Generate an image based on this description."])
    weight_unit: str = "documents"  # documents or tokens: what the sources' weights are shares of
    skip: list[str] = field(default_factory=list)  # documents that are left out: SOURCE/KEY OF THE SAMPLE
    # go on from a checkpoint of other shards, another mixture, seq_len, seed, or number of streams
    allow_change: bool = False
    cache: str | None = None  # a folder that keeps chunks of remote shard sets; None = none
    cache_gib: float = 20.0  # its size limit, shared by all processes of a machine
    max_bad: float = 0.05  # share of unreadable samples past which the run stops


@dataclass
class LossConfig:
    weight: dict[str, float] = field(default_factory=dict)  # a task that is not named counts 1
    normalize: str = "token"  # token, document or sqrt: how much a long document counts
    chunk: int = 1024  # target positions whose logits exist at the same time
    z_loss: float = 0.0


@dataclass
class SpikeConfig:
    """What is done about a step whose loss lies far above the last ones' (spike_guard.py)."""

    # warn: count it; skip: no optimizer step; rewind: back to the newest checkpoint, on after the spike's data
    action: str = "warn"
    threshold: float = 6.0  # robust standard deviations above the median
    window: int = 128  # steps that these are taken from; none is a spike before half of them are known
    rewinds: int = 3  # the next spike ends the run


@dataclass
class TrainConfig:
    steps: int | None = None
    tokens: int | None = None  # length in tokens instead of steps
    micro_batch: int = 4  # sequences per rank and forward pass
    deterministic: bool = False
    batch_digest: bool = False
    max_skipped: int = 10  # non-finite steps, or skipped spikes, in a row before the run stops
    # seconds without progress after which a rank says where it hangs, and ends; null = never
    hang_timeout: float | None = 1800.0
    profile_steps: list[int] | None = None  # [first, last]: these steps are profiled
    spike: SpikeConfig = field(default_factory=SpikeConfig)


@dataclass
class ParallelConfig:
    replicate: int = 1  # copies of the sharded model (HSDP): gradients are summed over them
    shard: int = -1  # ranks that share weights and optimizer state (FSDP2); -1 = all remaining ranks
    # ranks that share every matrix product (tensor parallelism): for models whose layers are too large for one
    tensor: int = 1
    precision: str = "bf16"  # bf16 or fp32
    # within documents: flash, varlen, flex, rectangles, or auto = the first of these that runs here
    attention: str = "auto"
    activation_checkpoint: str = "none"  # none, selective (keeps matrix products and attention) or full
    compile: bool = False
    cpu_offload: bool = False  # weights and optimizer state wait in the host's memory: slow, the last resort


@dataclass
class OptimizerConfig:
    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    grad_clip: float = 1.0
    image_embedding_lr_scale: float = 1.0  # learning rate of the image rows of embedding and head, relative to lr
    # a first stage of so many steps trains the rows that a published checkpoint lacks, and nothing else
    new_rows_steps: int = 0


@dataclass
class ScheduleConfig:
    kind: str = "cosine"  # cosine, constant or wsd
    warmup: float = 0.03  # share of the steps, or their number from 1 on
    decay: float = 0.2  # wsd: share of the steps at the end, or their number from 1 on
    min_lr: float = 0.0  # as a share of optimizer.lr


@dataclass
class CheckpointConfig:
    every: int = 500
    async_save: bool = True  # written next to the training, from a copy in the CPU's memory; false: training waits
    keep: int = 2  # newest ones, and the best one besides
    keep_every: int | None = None  # those of every so many steps are kept for good
    best: str | None = None  # the number of metrics.jsonl that the best one is best by, such as eval/vqa_accuracy
    best_is: str = "highest"  # highest or lowest
    shard_gib: float = 5.0  # GiB of one safetensors file of model/: what a rank holds in memory, at most, to write it
    resume: str = "auto"  # auto, none, or the path of a checkpoint


@dataclass
class WandbConfig:
    mode: str = "offline"  # online, offline or disabled
    project: str = "liquid"


@dataclass
class TrackerConfig:
    every: int = 1
    wandb: WandbConfig = field(default_factory=WandbConfig)
    progress: bool = True


@dataclass
class TrainJob:
    """Everything `liquid train` reads."""

    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    vq: VQSettings = field(default_factory=VQSettings)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evals: EvalsConfig = field(default_factory=EvalsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


@dataclass
class PlanJob(TrainJob):
    """Everything `liquid plan` reads: a training config, of which it uses backbone, vq.config, parallel and launch."""

    format: str = "table"  # table or json


@dataclass
class TokenizeSettings:
    source: str = "???"
    split: str = "train"  # of a source that has splits
    input: str | None = None  # files, a folder or a pattern, for sources that read files
    images: str | None = None  # what paths of images in a list are relative to; None = the list's own folder
    image_key: str | None = None  # where a row has its image; None = the usual names
    text_key: str | None = None  # where a row has its text; None = the usual names
    output: str = "???"
    part: str | None = None  # I/N; None = the rank of torchrun, else all of it
    # 1 = the images as they are; further copies are mirrored and shifted (augmentation before tokenizing)
    copies: int = 1
    crop: str = "none"  # none, center or multiratio
    size: int | None = None  # pixels; None = the VQ's resolution
    sizes: list[str] | None = None  # WIDTHxHEIGHT, for multiratio; None = a list made from size
    max_aspect: float | None = 2.0
    max_characters: int = 20000  # of one text document
    precision: str = "fp32"
    batch_size: str = "auto"
    compile: bool = False
    shard_size: int = 1024  # input rows of one shard
    workers: int | None = None  # processes that read and, on a CPU, encode; None = one a core
    device: str = "auto"
    overwrite: bool = False
    max_bad: float = 0.05
    progress: bool = True


@dataclass
class TokenizeJob:
    """Everything `liquid tokenize` reads."""

    seed: int = 0
    vq: VQSettings = field(default_factory=VQSettings)
    tokenize: TokenizeSettings = field(default_factory=TokenizeSettings)


@dataclass
class GenerateJob:
    """Everything `liquid generate` reads."""

    checkpoint: str = "???"  # a run, a checkpoint or an HF folder
    task: str = "t2i"  # t2i, i2t, vqa, t2t or chat
    prompt: str | None = None
    prompts: str | None = None  # a text file, one prompt a line
    image: str | None = None
    questions: str | None = None  # a JSON-lines file of {"image", "question"}
    output: str | None = None  # a folder
    size: str | None = None  # WIDTHxHEIGHT in pixels; None = as trained
    seed: int = 0
    guidance: float = 3.0
    null_prompt: str = "auto"  # what guidance draws away from; auto = as trained
    force: bool = False
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    max_new_tokens: int = 64
    batch_size: int = 32
    precision: str = "fp32"
    compile: bool = False
    device: str = "auto"
    vq: VQSettings = field(default_factory=VQSettings)


@dataclass
class ServeLimits:
    """What one request, and all of them together, may take."""

    waiting: int = 64  # requests that wait while one is answered; the next one is told to come back (503)
    characters: int = 4000  # of a prompt or question
    pictures: int = 4  # drawn by one request; on a GPU all are drawn in batches of this size
    new_tokens: int = 512  # of one answer
    pixels: int = 2**24  # of one image, sent or drawn
    body_mib: float = 16.0  # of one request


@dataclass
class ServeJob:
    """Everything `liquid serve` reads."""

    checkpoint: str = "???"  # a run, a checkpoint or an HF folder
    host: str = "127.0.0.1"
    port: int = 7860
    ui: bool = True  # the page next to the API
    limits: ServeLimits = field(default_factory=ServeLimits)
    force: bool = False
    precision: str = "fp32"
    device: str = "auto"
    vq: VQSettings = field(default_factory=VQSettings)


@dataclass
class EvalJob:
    """Everything `liquid eval` reads."""

    checkpoint: str | None = None  # None: what is scored is in files already
    watch: str | None = None  # a run whose checkpoints are evaluated as they come
    watch_newest: bool = False  # of several that wait only the newest
    watch_seconds: float = 10.0  # between two looks at the run
    shards: str = "data/quickstart/images-test"  # the shard set with the questions
    train_shards: str | None = "data/quickstart/images-train"  # for the blind baseline: answers by the question alone
    output: str | None = None  # a folder; None = evals/ in the run
    batch_size: int = 64
    seed: int = 0
    images_per_prompt: int = 10
    guidance: float = 3.0
    temperature: float = 0.8
    top_k: int | None = None
    max_images: int | None = None  # only the first N images of the set
    metrics: list[str] = field(default_factory=lambda: list(OWN_METRICS))
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


JOBS: dict[str, type] = {
    "train": TrainJob,
    "plan": PlanJob,
    "tokenize": TokenizeJob,
    "generate": GenerateJob,
    "serve": ServeJob,
    "eval": EvalJob,
}


def conf_dir() -> Path:
    """conf/ inside the installed package, else next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def package_path(path: str) -> Path:
    """A path from the config; `package:NAME` is NAME inside the installed package."""
    return (
        Path(__file__).resolve().parents[1] / path.removeprefix("package:")
        if path.startswith("package:")
        else Path(path)
    )


def load(job: str, overrides: list[str]) -> Any:
    """Compose conf/<job>.yaml with overrides into its dataclass.

    Raises UserError with the key, the value and what would be right, whatever was wrong.
    """
    if job not in JOBS:
        raise UserError(f"unknown job {job!r}; one of {', '.join(JOBS)}")
    GlobalHydra.instance().clear()
    # Keys and defaults only: types are checked after composing, so that a new source can be added key by key
    ConfigStore.instance().store(name=f"{job}_schema", node=OmegaConf.to_container(OmegaConf.structured(JOBS[job])))
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose(job, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_hydra_message(error, JOBS[job])) from error
    config = typed(JOBS[job], composed)
    from liquid_train.config.checks import CHECKS  # it needs the dataclasses above

    CHECKS[job](config)
    return config


def typed(schema: type, composed: DictConfig | ListConfig) -> Any:
    """Merge a composed config into the schema: types checked, unknown keys refused, missing ones named."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), composed)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} has no value; give {missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
        text = str(error).split("\n")[0]
        raise UserError(f"{key}: {text}{_suggest(str(key), schema)}") from error


def read_config(run_dir: Path) -> TrainJob:
    """The config that a run was trained with. Raises UserError where there is none."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run_dir}: no config.yaml there; give the folder of a run")
    config: TrainJob = typed(TrainJob, OmegaConf.load(file))
    return config


def all_keys(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of every key of a schema, nested dataclasses included."""
    names = []
    for f in fields(schema):
        default = f.default_factory() if callable(f.default_factory) else f.default
        names.append(prefix + f.name)
        if is_dataclass(default):
            names += all_keys(type(default), f"{prefix}{f.name}.")
    return names


def _suggest(key: str, schema: type) -> str:
    close = difflib.get_close_matches(key, all_keys(schema), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close and close[0] != key else ""


def _hydra_message(error: Exception, schema: type) -> str:
    """The telling lines of a Hydra error and of its cause, with the nearest key that exists."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]}: no such key{_suggest(unknown[1], schema)}"
    merging = re.search(r"Error merging override \+*([^=\s]+)=?(\S*)", text)
    cause = str(error.__cause__ or "").split("\n")[0]
    if merging and cause:
        missing = re.match(r"Key '([^']+)' not in", cause)
        return f"{merging[1]}: no such key{_suggest(merging[1], schema)}" if missing else f"{merging[1]}: {cause}"
    return text.split(" Config search path")[0]


def to_yaml(config: Any) -> str:
    """A config dataclass as yaml text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(schema: type, path: str | Path) -> Any:
    """Read back what to_yaml wrote."""
    return typed(schema, OmegaConf.create(Path(path).read_text()))
