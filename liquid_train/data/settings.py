"""The data engine's settings: sources, packing, order."""

from __future__ import annotations

from dataclasses import dataclass, field


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
