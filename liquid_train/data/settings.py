"""The data engine's settings: sources, packing, order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from liquid_train.config.fields import MISSING, Section, require, setting
from liquid_train.data.outage import RETRY_SECONDS


@dataclass
class SourceConfig(Section):
    """One shard set under one task."""

    kind_key = "task"

    path: Annotated[str, setting("folder or URL of the shard set", is_path=True)] = MISSING
    task: Annotated[str, setting("what documents are made of its samples", kinds="liquid_train.data.tasks:TASKS")] = (
        MISSING
    )
    weight: Annotated[
        float, setting("share of documents (of tokens: data.weight_unit), relative to the other sources", ge=0)
    ] = 1.0
    max_epochs: Annotated[
        float | None, setting("passes over it, after which the others take over its share", gt=0, null="no end")
    ] = None
    questions_per_document: Annotated[int, setting("vqa: turns chained after one image", ge=1)] = 1
    max_samples: Annotated[int | None, setting("held-out sources: only the first N samples", ge=1, null="all")] = None


@dataclass
class DataConfig(Section):
    """The mixture, and how it is packed and dealt."""

    sources: Annotated[
        dict[str, SourceConfig], setting("shard sets by a name of yours: data.sources.NAME.path=...")
    ] = field(default_factory=dict)
    heldout: Annotated[dict[str, SourceConfig], setting("the same, for the held-out loss and for evaluations")] = field(
        default_factory=dict
    )
    seq_len: Annotated[int, setting("tokens of a packed sequence", ge=2, le=10**7)] = 1024
    global_batch: Annotated[int, setting("sequences of one optimizer step, over all ranks", ge=1, le=10**6)] = 8
    streams: Annotated[
        int | None, setting("canonical streams", ge=1, le=10**6, null="as many as data.global_batch")
    ] = None
    workers: Annotated[int, setting("loader processes of each rank; 0: none", ge=0)] = 1
    window: Annotated[int, setting("sequences that are packed together", ge=1, le=10**5)] = 8
    unconditional: Annotated[
        float, setting("share of t2i documents whose caption is replaced by <unconditional>", ge=0, le=1)
    ] = 0.1
    image_loss: Annotated[
        bool,
        setting(
            "whether the codes of images that a document begins with or asks about are predicted too, as the task "
            "`image` (loss.weight.image); false: as published"
        ),
    ] = False
    prompts: Annotated[
        list[str],
        setting(
            "what follows a t2i caption: one is sampled for each image; images are generated with the first",
            min_length=1,
        ),
    ] = field(default_factory=lambda: [" Generate an image based on this description."])
    weight_unit: Annotated[Literal["documents", "tokens"], setting("what the sources' weights are shares of")] = (
        "documents"
    )
    skip: Annotated[list[str], setting("documents to leave out, as SOURCE/KEY of the sample")] = field(
        default_factory=list
    )
    allow_change: Annotated[
        bool, setting("resume from a checkpoint of other shards, another mixture, seq_len, seed or number of streams")
    ] = False
    cache: Annotated[
        str | None, setting("folder that keeps chunks of remote shard sets", null="none", is_path=True)
    ] = None
    cache_gib: Annotated[float, setting("its size limit, shared by all processes of a machine", gt=0)] = 20.0
    max_dropped: Annotated[
        float,
        setting(
            "share of a source's documents that may be dropped, for whatever reason, before the run stops", ge=0, le=1
        ),
    ] = 0.1
    max_bad: Annotated[float, setting("share of damaged samples past which the run stops", ge=0, le=1)] = 0.05
    retry_seconds: Annotated[
        float,
        setting(
            "for how long a shard that cannot be read now (server, network, a folder away) is tried again before the "
            "run ends; at most half of train.hang_timeout",
            ge=0,
        ),
    ] = RETRY_SECONDS

    def check(self, key: str) -> None:
        require(
            not self.sources or sum(s.weight for s in self.sources.values()) > 0,
            f"{key}sources: every weight is 0; give one of them a positive weight",
        )
        for skipped in self.skip:
            named = "/" in skipped and skipped.split("/")[0] in self.sources
            require(named, f"{key}skip: {skipped}: not SOURCE/KEY with a source of {', '.join(self.sources)}")
