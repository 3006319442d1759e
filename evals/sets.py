"""The shard sets that an evaluation reads: those that the config names, else the run's own data.heldout. Torch-free.

questions  vqa                      shards=SET, or the first held-out source of task vqa
captions   prompts, captions        shards=SET, or the first one of task t2i or i2t
images     image_quality            shards=SET, or the first one of task vqa, t2i or i2t
train      the blind baseline       train_shards=SET, or the first source of task vqa in data.sources
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from evals.easy_vqa.detect import is_easy_vqa
from evals.errors import NotMeasurable
from evals.settings import EvalJob
from liquid_train.checkpoint.folder import model_folder
from liquid_train.config.compose import read_config
from liquid_train.config.schema import TrainJob
from liquid_train.data.settings import SourceConfig
from liquid_train.data.shard_format import Sample
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError

LOOKED_AT = 1024  # samples in which something must occur, to be counted as there

TASKS = {"questions": ("vqa",), "captions": ("t2i", "i2t"), "images": ("vqa", "t2i", "i2t")}


@dataclass
class EvalSets:
    """questions, captions, images, train: paths, None where there is none. why: what to do about one that is missing.
    fingerprint, codebook_size: of the VQ whose codes are asked for; None: any."""

    questions: str | None = None
    captions: str | None = None
    images: str | None = None
    train: str | None = None
    why: str = "give shards=SET"
    from_run: bool = False
    fingerprint: str | None = None
    codebook_size: int | None = None
    _open: dict[str, ShardSet] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str | None, codebook_size: int | None = None) -> EvalSets:
        """One set for everything; None: no set."""
        return cls(path, path, path, codebook_size=codebook_size, why="no held-out source has images")

    def path(self, kind: str) -> str | None:
        found = getattr(self, kind)
        assert found is None or isinstance(found, str)
        return found

    def get(self, kind: str) -> ShardSet:
        """The set of one kind. Raises NotMeasurable where there is none, or the run's own cannot be opened."""
        path = self.path(kind)
        if path is None:
            raise NotMeasurable(f"no shard set with {kind}: {self.why}")
        if path not in self._open:
            try:
                self._open[path] = ShardSet(path, vq_fingerprint=self.fingerprint, codebook_size=self.codebook_size)
            except UserError as error:
                if self.from_run:
                    raise NotMeasurable(f"the run's own set: {error}") from error
                raise
        return self._open[path]

    def require(self, kind: str) -> None:
        """Raises NotMeasurable where there is no set of that kind, or nothing of the kind in its first samples."""
        if kind == "train":  # for a baseline only
            return
        shards = self.get(kind)
        if not any(holds(sample, kind) for sample in first(shards, LOOKED_AT)):
            raise NotMeasurable(f"{shards.path}: its samples carry no {kind}")

    def of_vq(self, fingerprint: str, codebook_size: int) -> EvalSets:
        """The same sets, whose codes must be of this VQ when they are opened."""
        return replace(self, fingerprint=fingerprint, codebook_size=codebook_size, _open={})

    @property
    def baseline(self) -> ShardSet | None:
        """The training set of the blind baseline; None where there is none, or the run's own is no longer there."""
        if self.train is None:
            return None
        try:
            return self.get("train")
        except NotMeasurable:
            return None

    @cached_property
    def easy_vqa(self) -> bool:
        """Whether the data are easy-VQA, of which more is known than of others."""
        paths = dict.fromkeys(path for kind in TASKS if (path := self.path(kind)) is not None)
        kinds = {path: next(kind for kind in TASKS if self.path(kind) == path) for path in paths}
        return bool(paths) and all(is_easy_vqa(self.get(kinds[path])) for path in paths)

    def texts(self, count: int) -> list[str]:
        """The first `count` different captions. Raises NotMeasurable for none."""
        shards = self.get("captions")
        found: dict[str, None] = {}
        for sample in shards:
            if holds(sample, "captions"):
                found[sample["text"]] = None
            if len(found) == count:
                break
        if not found:
            raise NotMeasurable(f"{shards.path}: its samples carry no captions")
        return list(found)


def holds(sample: Sample, kind: str) -> bool:
    """Whether a sample has questions, a caption, or an image."""
    if "codes" not in sample:
        return False
    if kind == "questions":
        return bool(sample["info"].get("questions"))
    return kind == "images" or bool(sample.get("text", "").strip())


def first(shards: ShardSet, count: int) -> Iterator[Sample]:
    return islice(iter(shards), count)


def eval_sets(config: EvalJob) -> EvalSets:
    """Those of `liquid eval`."""
    if config.shards is not None:
        return EvalSets(config.shards, config.shards, config.shards, config.train_shards)
    run = training_config(config)
    if run is None:
        return EvalSets(why=f"checkpoint={config.checkpoint} belongs to no run; give shards=SET")
    heldout = run.data.heldout
    questions, captions, images = (path_of(heldout, TASKS[kind]) for kind in ("questions", "captions", "images"))
    train = config.train_shards or path_of(run.data.sources, TASKS["questions"])
    why = "data.heldout of the run names no such source (task vqa, t2i or i2t); give shards=SET"
    return EvalSets(questions, captions, images, train, why, from_run=True)


def path_of(sources: dict[str, SourceConfig], tasks: tuple[str, ...]) -> str | None:
    """Of the first source of one of the tasks, the first task first."""
    return next((s.path for task in tasks for s in sources.values() if s.task == task), None)


def training_config(config: EvalJob) -> TrainJob | None:
    """The config of the run that the checkpoint is of, or that heldout.run names; None where there is none."""
    if config.heldout.run is not None:
        return read_config(Path(config.heldout.run))
    if config.watch is not None:
        return read_config(Path(config.watch))
    if config.checkpoint is None:
        return None
    folder = model_folder(config.checkpoint)
    if not in_run(folder) or not (folder.parents[2] / "config.yaml").is_file():
        return None
    return read_config(folder.parents[2])


def in_run(folder: Path) -> bool:
    """Whether a model/ folder belongs to a checkpoint of a run."""
    return folder.name == "model" and folder.parent.parent.name == "checkpoints"
