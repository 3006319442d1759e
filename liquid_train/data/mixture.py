"""One stream's row of documents: sources permuted per epoch, dealt to streams, mixed by weight.

    shard set --permute by (seed, source, epoch)--> items --stream s takes s, s+S, ...--> documents (items.py)
    sources   --largest deficit of documents (or tokens) drawn against weight----------> the stream's row

An item is a contiguous range of at most 256 samples, and every stream gets as many items of a pass. All random choices
are keyed by (seed, source, epoch, sample), so a document is named by its position alone: (source, item ordinal, place).
The row is endless, or ends when every source has been read `max_epochs` times: item i of the concatenated epochs exists
while i < max_epochs * items, whichever stream it is dealt to, so all streams together make exactly that many passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from liquid_train.data.items import Item, item_count, item_range
from liquid_train.data.keyed import keyed_generator
from liquid_train.data.sequence_pieces import IGNORED, BadSample
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shard_format import Sample, fields_of
from liquid_train.data.shards import ShardSet
from liquid_train.data.stream_state import DocumentName, MixtureState
from liquid_train.data.tasks import IMAGE, find_task, task_names
from liquid_train.errors import UserError
from liquid_train.vocabulary import check_codes, check_ids, text_size

KEPT_ROUNDS = 4096  # items whose number of documents is kept, a few hundred bytes each
PHASES = 1000  # documents; the rarest source that streams begin with out of phase is one of a thousand documents
IMAGES_PER_SEQUENCE = 4  # about; only the phase of sources that are weighed by tokens depends on it


@dataclass(frozen=True)
class Document:
    """Token ids and labels (unshifted, -100 = no loss) of one document, both int64 [n], and the task that each label
    counts for, its place in task_names(data), int8 [n]."""

    name: DocumentName
    key: str
    ids: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    tasks: np.ndarray = field(repr=False)
    splittable: bool = False  # whether it may be cut before any token

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, at: int) -> tuple[Document, Document]:
        """Cut it in two before token `at`."""
        assert self.splittable and 0 < at < len(self)
        rest: DocumentName = {**self.name, "start": self.name["start"] + at}
        cut = {name: getattr(self, name) for name in ("ids", "labels", "tasks")}
        head = replace(self, **{name: array[:at] for name, array in cut.items()})
        return head, replace(self, name=rest, **{name: array[at:] for name, array in cut.items()})


class SourceReader:
    """One shard set under one task: any stream's item k, as documents. Shared by all streams of a process.

    number: the task's, in arrays. dropped: what was left out or shortened, by reason. asked, lost: documents that were
    wanted, and those of them that were not made, damaged samples included, by reason. Raises UserError for a task that
    does not exist, or that cannot work with the tokenizer, and for a set without samples.
    """

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        shards: ShardSet,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        streams: int,
        seed: int,
    ) -> None:
        self.name, self.config, self.shards, self.tokenizer, self.data = name, config, shards, tokenizer, data
        self.streams, self.seed = streams, seed
        self.task = find_task(config.task, f"data.sources.{name}.task")
        self.number = task_names(data).index(self.task.name)
        self.items = item_count(shards.num_samples, streams)
        if not self.items:
            raise UserError(f"data.sources.{name}.path={config.path}: no sample there")
        self.skip = {key for source, _, key in (s.partition("/") for s in data.skip) if source == name}
        self.dropped: Counter[str] = Counter()
        self.asked, self.lost = 0, Counter[str]()
        # stream -> its current item: as much memory as there are streams here
        self._current: dict[int, tuple[int, Item]] = {}
        self._rounds: dict[int, np.ndarray] = {}  # item -> documents of its first rounds, as the index knows them
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: keyed_generator(seed, name, epoch, "items").permutation(self.items)
        )
        self.task.check(tokenizer)
        check_ids(shards.ids_fingerprint, tokenizer, f"data.sources.{name}.path={shards.path}")

    def first(self, samples: int) -> list[Document]:
        """All documents of the first `samples` samples that have any, in the order of epoch 0; for held-out sets (one
        stream)."""
        assert self.streams == 1
        documents: list[Document] = []
        ordinal = used = 0
        while used < samples and ordinal < self.items:
            item, chosen = self.item(0, ordinal), set[int]()
            for offset in item.places():
                sample = item.sample_at(offset)
                if sample in chosen or len(chosen) < samples - used:
                    chosen.add(sample)
                    document = self.document(0, {"source": self.name, "ordinal": ordinal, "offset": offset, "start": 0})
                    documents += [document] if document is not None else []
            used += len(chosen)
            ordinal += 1
        return documents

    def epoch_of(self, stream: int, ordinal: int) -> int:
        return (stream + ordinal * self.streams) // self.items

    def used_up(self, stream: int, ordinal: int) -> bool:
        """Whether the stream's item `ordinal` lies after the last pass."""
        passes = self.config.max_epochs
        return passes is not None and stream + ordinal * self.streams >= round(passes * self.items)

    def item(self, stream: int, ordinal: int) -> Item:
        """The stream's item `ordinal`; the last one asked for is kept."""
        at_hand = self._current.get(stream)
        if at_hand is None or at_hand[0] != ordinal:
            at_hand = (ordinal, self._open_item(*self._which(stream, ordinal)))
            self._current[stream] = at_hand
        return at_hand[1]

    def passed(self, stream: int, ordinal: int, offset: int) -> float:
        """How many items the stream has read up to a position: the current one by its share of documents, as the index
        knows them, or as if every sample made one where it does not."""
        if not offset:
            return ordinal
        item = self._which(stream, ordinal)[1]
        rounds = self._rounds_of(item)
        count = len(item_range(self.shards.num_samples, self.items, item))
        turn, place = divmod(offset, count)
        if turn >= len(rounds) or not rounds.sum():
            return ordinal + min(1.0, float(turn))
        return ordinal + float(rounds[:turn].sum() + rounds[turn] * place / count) / float(rounds.sum())

    def _which(self, stream: int, ordinal: int) -> tuple[int, int]:
        """(epoch, number of the item) of the stream's item `ordinal`."""
        epoch, place = divmod(stream + ordinal * self.streams, self.items)
        return epoch, int(self._permutation(epoch)[place])

    def _open_item(self, epoch: int, item: int) -> Item:
        numbers = item_range(self.shards.num_samples, self.items, item)
        samples = self.shards.read(numbers.start, len(numbers))
        self._remember_rounds(item, samples.rows, len(numbers))
        key = (self.seed, self.name, epoch, "item", item)
        return Item(
            samples,
            partial(self._plan_sample, epoch),
            lambda turn: keyed_generator(*key, turn).permutation(len(numbers)),
        )

    def _plan_sample(self, epoch: int, sample: Sample | None) -> list[dict[str, Any]]:
        if sample is None:
            self.asked += 1
            self.lost["damaged samples"] += 1
            return []
        generator = partial(keyed_generator, self.seed, self.name, epoch, "questions", sample["key"])
        return self.task.documents(sample, self.config, generator)

    def _rounds_of(self, item: int) -> np.ndarray:
        if item not in self._rounds:
            numbers = item_range(self.shards.num_samples, self.items, item)
            self._remember_rounds(item, self.shards.rows(numbers.start, len(numbers)), len(numbers))
        return self._rounds[item]

    def _remember_rounds(self, item: int, rows: np.ndarray | None, count: int) -> None:
        made = np.ones(count, int) if rows is None else self.task.expected(rows, self.config)
        self._rounds.pop(item, None)
        self._rounds[item] = np.array([(made > turn).sum() for turn in range(int(made.max()))])
        if len(self._rounds) > KEPT_ROUNDS:
            del self._rounds[next(iter(self._rounds))]

    def document(self, stream: int, name: DocumentName) -> Document | None:
        """Build one document; None (and counted) where the sample is bad, or longer than seq_len and cannot be
        shortened."""
        sample, own_fields = self.item(stream, name["ordinal"]).plan(name["offset"])
        generator = keyed_generator(self.seed, self.name, self.epoch_of(stream, name["ordinal"]), sample["key"])
        fields: dict[str, Any] = {**fields_of(sample), **own_fields}
        if "codes" in sample:
            check_codes(sample["codes"], self.shards.codebook_size or 0, f"{self.shards.path}, sample {sample['key']}")
        task, seq_len = self.task, self.data.seq_len
        self.asked += 1
        try:
            task.draw(fields, self.data, generator)
            ids, labels = task.sequence(fields, self.tokenizer)
            if len(ids) > seq_len and not task.splittable:
                if how := task.shorten(fields, len(ids) - seq_len, self.tokenizer):
                    self.dropped[how] += 1
                    ids, labels = task.sequence(fields, self.tokenizer)
                if len(ids) > seq_len:
                    raise BadSample("longer than seq_len")
        except BadSample as error:
            self.dropped[str(error)] += 1
            self.lost[str(error)] += 1
            return None
        tasks = np.full(len(ids), self.number, np.int8)
        if self.data.image_loss:
            given = (labels == IGNORED) & (ids >= text_size(self.tokenizer))
            labels = np.where(given, ids, labels)
            tasks[given] = task_names(self.data).index(IMAGE)
        part = slice(name["start"], None)
        return Document(name, sample["key"], ids[part], labels[part], tasks[part], task.splittable)


class Mixture:
    """One stream's series of documents. `state` is small and exact: a Mixture made from it continues with the very next
    document."""

    def __init__(self, stream: int, readers: dict[str, SourceReader], state: MixtureState | None = None) -> None:
        self.stream, self.readers = stream, readers
        (seed,) = {r.seed for r in readers.values()}
        self.weights = {name: r.config.weight for name, r in readers.items() if r.config.weight > 0}
        self.by_tokens = any(r.data.weight_unit == "tokens" for r in readers.values())
        # what each source is ahead of its share before the first document, in documents or tokens
        unit = max(r.data.seq_len for r in readers.values()) // IMAGES_PER_SEQUENCE if self.by_tokens else 1
        self.ahead = {
            name: unit * documents
            for name, documents in zip(self.weights, _phase(seed, stream, tuple(self.weights.values())), strict=True)
        }
        old: dict[str, Any] = dict(state) if state else {}
        self.drawn = {name: 0 for name in self.weights} | old.get("drawn", {})
        # states of before the unit `tokens` have none
        self.tokens = {name: 0 for name in self.weights} | old.get("tokens", {})
        self.positions = {name: [0, 0] for name in self.weights} | {
            k: list(v) for k, v in old.get("positions", {}).items()
        }
        self._barren = {name: 0 for name in self.weights}  # items since the last document

    @property
    def state(self) -> MixtureState:
        return {
            "drawn": dict(self.drawn),
            "tokens": dict(self.tokens),
            "positions": {k: list(v) for k, v in self.positions.items()},
        }

    def next(self) -> Document | None:
        """The next document of the source that is furthest below its share; None when every source is used up."""
        while (source := self._choose()) is not None:
            name = self._advance(source)
            if name is None:
                continue  # that was its last item: from here on the others share its part
            self.drawn[source] += 1
            document = self.readers[source].document(self.stream, name)
            if document is not None:
                self.tokens[source] += len(document)
                self._barren[source] = 0
                return document
        return None

    def rebuild(self, names: Iterable[DocumentName]) -> list[Document]:
        """Build documents again, in the order of their names; without those that are too long for seq_len."""
        names = list(names)
        # sorted, so that every item is read once
        order = sorted(range(len(names)), key=lambda i: (names[i]["source"], names[i]["ordinal"]))
        built = {i: self.readers[names[i]["source"]].document(self.stream, names[i]) for i in order}
        return [document for i in range(len(names)) if (document := built[i]) is not None]

    def _choose(self) -> str | None:
        left = [n for n in self.weights if not self.readers[n].used_up(self.stream, self.positions[n][0])]
        if not left:
            return None
        counts = self.tokens if self.by_tokens else self.drawn
        total, count = sum(self.weights[n] for n in left), sum(counts[n] for n in left) + 1
        return max(left, key=lambda n: self.weights[n] / total * count - counts[n] - self.ahead[n])

    def _advance(self, source: str) -> DocumentName | None:
        """Name of the source's next document, None after its last; skips empty items."""
        reader, position = self.readers[source], self.positions[source]
        while not reader.used_up(self.stream, position[0]):
            offset = reader.item(self.stream, position[0]).next(position[1])
            if offset is not None:
                position[1] = offset + 1
                return {"source": source, "ordinal": position[0], "offset": offset, "start": 0}
            position[0], position[1] = position[0] + 1, 0
            self._barren[source] += 1
            if self._barren[source] > reader.items + 1:
                raise UserError(
                    f"data.sources.{source}.path={reader.config.path}: no sample there can serve task "
                    f"{reader.config.task} within data.seq_len={reader.data.seq_len} "
                    f"({dict(reader.dropped + reader.shards.bad) or 'none has what the task needs'})"
                )
        return None


def _phase(seed: int, stream: int, weights: tuple[float, ...]) -> list[float]:
    """How far each source of a stream is ahead of its share at the start, in documents, between -1 and 1.

    All streams take turns among their sources in the same pattern; each begins at another place of it, else the first
    documents of all of them would be of one source.
    """
    start = int(keyed_generator(seed, "phase", stream).integers(PHASES))
    return [float(documents) for documents in _pattern(weights)[start]]


@lru_cache(maxsize=4)
def _pattern(weights: tuple[float, ...]) -> np.ndarray:
    """[PHASES, sources]: documents taken of each source minus its share, before each of the first PHASES choices."""
    share = np.array(weights) / sum(weights)
    ahead = np.zeros((PHASES, len(weights)))
    for i in range(1, PHASES):
        ahead[i] = ahead[i - 1] - share
        ahead[i, np.argmin(ahead[i])] += 1
    return ahead
