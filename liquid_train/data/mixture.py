"""One stream's endless row of documents: sources permuted per epoch, dealt to streams, mixed by weight.

    shard set --permute by (seed, source, epoch)--> items --stream s takes s, s+S, ...--> samples --> documents
    sources   --largest deficit of documents drawn against weight------------------------------> the stream's row

An item is a chunk of 256 samples, or one sample where a source has fewer than 4 chunks a stream. All random choices are
keyed by (seed, source, epoch, sample), so a document is named by its position alone: (source, item ordinal, offset).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
from transformers import PreTrainedTokenizerBase

from liquid_train.config import TASKS, DataConfig, SourceConfig
from liquid_train.data.keyed import keyed_generator
from liquid_train.data.sequences import build_sequence
from liquid_train.data.shards import Sample, ShardSet
from liquid_train.vocabulary import check_codes

MIN_CHUNKS_PER_STREAM = 4


class MixtureState(TypedDict):
    """Where a stream stands. drawn: documents per source; positions: per source [item ordinal, offset in the item]."""

    drawn: dict[str, int]
    positions: dict[str, list[int]]


class DocumentName(TypedDict):
    """What is needed to build a document again; start: first token, for the rest of a text that was split."""

    source: str
    ordinal: int
    offset: int
    start: int


@dataclass(frozen=True)
class Document:
    """Token ids and labels (unshifted, -100 = no loss) of one document, both int64 [n]."""

    name: DocumentName
    key: str
    task: int  # index into config.TASKS
    ids: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    @property
    def splittable(self) -> bool:
        return TASKS[self.task] == "text"

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, at: int) -> tuple[Document, Document]:
        """Cut a text in two before token `at`."""
        assert self.splittable and 0 < at < len(self)
        rest: DocumentName = {**self.name, "start": self.name["start"] + at}
        head = Document(self.name, self.key, self.task, self.ids[:at], self.labels[:at])
        return head, Document(rest, self.key, self.task, self.ids[at:], self.labels[at:])


class SourceReader:
    """One shard set under one task: any stream's item k, as documents. Shared by all streams of a process."""

    def __init__(self, name: str, config: SourceConfig, shards: ShardSet, tokenizer: PreTrainedTokenizerBase, data: DataConfig, streams: int, seed: int,
                 unconditional: float | None = None) -> None:  # fmt: skip
        self.unconditional = data.unconditional if unconditional is None else unconditional
        self.name, self.config, self.shards, self.tokenizer, self.data = name, config, shards, tokenizer, data
        self.streams, self.seed = streams, seed
        self.by_chunk = len(shards.chunks) >= MIN_CHUNKS_PER_STREAM * streams
        self.items = len(shards.chunks) if self.by_chunk else shards.num_samples
        self.dropped: Counter[str] = Counter()
        self._cache: OrderedDict[tuple[int, int], list[tuple[Sample, Any]]] = OrderedDict()
        self._permutation = lru_cache(maxsize=2)(lambda epoch: keyed_generator(seed, name, epoch, "items").permutation(self.items))

    def first(self, samples: int) -> list[Document]:
        """All documents of the first `samples` samples in the shards' order of epoch 0; for held-out sets (one stream)."""
        assert self.streams == 1
        documents: list[Document] = []
        ordinal = used = 0
        while used < samples and ordinal < self.items:
            plans = self.plans(0, ordinal)
            keys = list(dict.fromkeys(sample["key"] for sample, _ in plans))[: samples - used]
            for offset, (sample, _) in enumerate(plans):
                if sample["key"] in keys:
                    document = self.document(0, {"source": self.name, "ordinal": ordinal, "offset": offset, "start": 0})
                    documents += [document] if document is not None else []
            used += len(keys)
            ordinal += 1
        return documents

    def epoch_of(self, stream: int, ordinal: int) -> int:
        return (stream + ordinal * self.streams) // self.items

    def plans(self, stream: int, ordinal: int) -> list[tuple[Sample, Any]]:
        """(sample, turns or None) of every document of the stream's item `ordinal`; cached for the streams at hand."""
        key = (stream, ordinal)
        if key not in self._cache:
            self._cache[key] = self._plan_item(*divmod(stream + ordinal * self.streams, self.items))
            if len(self._cache) > 4 * self.streams + 8:
                self._cache.popitem(last=False)
        return self._cache[key]

    def _plan_item(self, epoch: int, index: int) -> list[tuple[Sample, Any]]:
        item = int(self._permutation(epoch)[index])
        if self.by_chunk:
            samples = self.shards.read_chunk(item)
            order = keyed_generator(self.seed, self.name, epoch, "chunk", item).permutation(len(samples))
            return [plan for i in order for plan in self._plan_sample(samples[i], epoch)]
        sample = self.shards.sample(item)
        return [] if sample is None else self._plan_sample(sample, epoch)

    def _plan_sample(self, sample: Sample, epoch: int) -> list[tuple[Sample, Any]]:
        if self.config.task != "vqa":
            usable = "text" in sample and (self.config.task == "text" or "codes" in sample)
            return [(sample, None)] if usable else []
        turns = [(q["question"], q["answers"]) for q in sample["info"].get("questions", ())]
        if "codes" not in sample or not turns:
            return []
        generator = keyed_generator(self.seed, self.name, epoch, "questions", sample["key"])
        turns = [(question, answers[int(generator.integers(len(answers)))]) for question, answers in (turns[i] for i in generator.permutation(len(turns)))]
        k = self.config.questions_per_document
        return [(sample, turns[i : i + k]) for i in range(0, len(turns), k)]

    def document(self, stream: int, name: DocumentName) -> Document | None:
        """Build one document; None (and counted) when an image document cannot fit seq_len even with a shorter caption."""
        sample, turns = self.plans(stream, name["ordinal"])[name["offset"]]
        epoch = self.epoch_of(stream, name["ordinal"])
        generator = keyed_generator(self.seed, self.name, epoch, sample["key"])
        fields: dict[str, Any] = {**sample.get("info", {}), **sample}
        if "codes" in sample:
            check_codes(sample["codes"], self.shards.codebook_size or 0, f"{self.shards.path}, sample {sample['key']}")
        if turns:
            fields["turns"] = turns
        elif "text" in sample:
            fields["text"] = draw_caption(fields, generator)
        prompts = self.data.prompts
        prompt = prompts[int(generator.integers(len(prompts)))]
        unconditional = self.config.task == "t2i" and generator.random() < self.unconditional
        ids, labels = build_sequence(fields, self.config.task, self.tokenizer, prompt=prompt, unconditional=bool(unconditional))
        if self.config.task != "text" and len(ids) > self.data.seq_len and "text" in fields and not turns:
            excess = len(ids) - self.data.seq_len
            words = self.tokenizer.encode(fields["text"], add_special_tokens=False, split_special_tokens=True)
            fields["text"] = self.tokenizer.decode(words[: max(0, len(words) - excess - 2)])
            self.dropped["caption shortened"] += 1
            ids, labels = build_sequence(fields, self.config.task, self.tokenizer, prompt=prompt, unconditional=bool(unconditional))
        if self.config.task != "text" and len(ids) > self.data.seq_len:
            self.dropped["longer than seq_len"] += 1
            return None
        start = name["start"]
        return Document(name, sample["key"], TASKS.index(self.config.task), ids[start:], labels[start:])


def draw_caption(fields: dict[str, Any], generator: np.random.Generator) -> str:
    """One of `captions` [{text, weight}] by weight, else `text`."""
    captions = fields.get("captions")
    if not captions:
        return fields["text"]
    weights = np.array([c.get("weight", 1.0) for c in captions], dtype=float)
    return captions[int(generator.choice(len(captions), p=weights / weights.sum()))]["text"]


class Mixture:
    """One stream's row of documents. `state` is small and exact: a Mixture made from it goes on with the very next document."""

    def __init__(self, stream: int, readers: dict[str, SourceReader], state: MixtureState | None = None) -> None:
        self.stream, self.readers = stream, readers
        total = sum(r.config.weight for r in readers.values())
        self.shares = {name: r.config.weight / total for name, r in readers.items() if r.config.weight > 0}
        self.drawn = {name: 0 for name in self.shares} | dict(state["drawn"] if state else {})
        self.positions = {name: [0, 0] for name in self.shares} | {k: list(v) for k, v in (state["positions"] if state else {}).items()}

    @property
    def state(self) -> MixtureState:
        return {"drawn": dict(self.drawn), "positions": {k: list(v) for k, v in self.positions.items()}}

    def next(self) -> Document:
        """The next document of the source that is furthest behind its share."""
        while True:
            count = sum(self.drawn.values()) + 1
            name = max(self.shares, key=lambda n: self.shares[n] * count - self.drawn[n])
            self.drawn[name] += 1
            document = self.rebuild(self._advance(name))
            if document is not None:
                return document

    def rebuild(self, name: DocumentName) -> Document | None:
        return self.readers[name["source"]].document(self.stream, name)

    def _advance(self, source: str) -> DocumentName:
        """Name of the source's next document; moves over used-up and empty items."""
        reader, position = self.readers[source], self.positions[source]
        tried = 0
        while position[1] >= len(reader.plans(self.stream, position[0])):
            position[0], position[1] = position[0] + 1, 0
            tried += 1
            if tried > reader.items + 1:
                raise ValueError(f"data.sources.{source}.path={reader.config.path}: no sample there can serve task {reader.config.task}")
        name: DocumentName = {"source": source, "ordinal": position[0], "offset": position[1], "start": 0}
        position[1] += 1
        return name
