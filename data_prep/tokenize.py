"""`liquid tokenize`: the offline VQ pass, from a source of pictures or texts to a shard set.

    source -> rows -> shards of tokenize.shard_size rows -> batches -> encoder processes -> ShardWriter -> index.json

Row n of the source always lies in shard n // shard_size, and a batch never crosses a shard: so a set's bytes depend neither on
the number of processes nor on how often the job was killed and started again.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.sources import Item, Source, open_source
from data_prep.writer import CHUNK_SAMPLES, SetFolder, ShardWriter, file_sha256
from liquid_train.config import TokenizeJob, package_path
from liquid_train.data.shards import INDEX_KIND, decode_codes, group_files

if TYPE_CHECKING:  # torch is imported only where something is left to encode
    from data_prep.encoding import BatchEncoder, Encoded, EncoderSettings

log = logging.getLogger(__name__)

FORMAT = 1  # of what this program writes; part of the recipe: raise it when the same settings give other samples than before
CUDA_BATCH = 64
TEXT_BATCH = 64


@dataclass(frozen=True)
class Encoding:
    """The encoder of an image source, and how it is used. `identity` is what codes can depend on besides the VQ."""

    encoder: BatchEncoder
    settings: EncoderSettings
    workers: int
    batch_size: int
    identity: dict[str, Any]


def run(config: TokenizeJob) -> None:
    """Make the shard set that `config` describes, or the rest of it; returns at once where it is complete.

    Raises ValueError for settings that cannot work, for an output folder that holds another set, and past tokenize.max_bad.
    """
    t = config.tokenize
    source = open_source(t, config.seed)
    _check_device(t.device)
    recipe = make_recipe(config, source)
    folder = SetFolder(Path(t.output))
    encoding: Encoding | None = None
    different = _differences(folder.recipe, recipe)
    if different and folder.recipe and all(line.startswith("vq.") for line in different):
        encoding = _open_encoding(config)  # other files, but perhaps the same model in another format
        if encoding.encoder.model.fingerprint == folder.recipe["vq"]["fingerprint"]:
            different, recipe = [], folder.recipe
    if different and not t.overwrite:
        raise ValueError(f"tokenize.output={t.output} holds another set: {'; '.join(different)}; "
                         "give another tokenize.output, or tokenize.overwrite=true to replace it")  # fmt: skip
    if not different and folder.is_complete():
        assert folder.index is not None
        print(f"{t.output}: complete already, {folder.index['totals']['samples']:,} samples of the same recipe; nothing to do")
        return
    if source.has_images:
        encoding = encoding or _open_encoding(config)
        recipe["vq"]["fingerprint"] = encoding.encoder.model.fingerprint
    try:
        with folder.locked():
            SetMaker(config, source, folder, encoding, recipe).make()
    except OSError as error:  # a full disk, above all
        raise ValueError(f"tokenize.output={t.output}: {error}; finished shards are kept, the same command goes on from there") from error


def make_recipe(config: TokenizeJob, source: Source) -> dict[str, Any]:
    """Everything that determines a set's content, told without torch. Raises ValueError where a file of the VQ is missing."""
    t = config.tokenize
    recipe = {"format": FORMAT, "source": {"name": t.source, **source.recipe()}, "shard_size": t.shard_size, "chunk_samples": CHUNK_SAMPLES}
    if source.has_images:
        files = {"config": package_path(config.vq.config), "checkpoint": package_path(config.vq.checkpoint)}
        for key, path in files.items():
            if not path.is_file():
                raise ValueError(f"vq.{key}={getattr(config.vq, key)}: no such file; give the VQGAN's {'yaml' if key == 'config' else '.ckpt or .safetensors'}")
        recipe["vq"] = {key: file_sha256(path) for key, path in files.items()}
        recipe["crop"] = "none"
    return recipe


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"tokenize.device={device}: one of auto, cpu, cuda, cuda:N")


def _differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What a folder's recipe has otherwise, as lines "key: OLD there, NEW asked for"; empty where there is nothing yet.

    The VQ is compared by its files: its fingerprint is not known without torch.
    """
    if old is None:
        return []
    if not old:
        return ["its shards have no recipe"]
    a, b = _flatten(old), _flatten(new)
    return [
        f"{key}: {_short(a.get(key))} there, {_short(b.get(key))} asked for"
        for key in sorted((a.keys() | b.keys()) - {"vq.fingerprint"})
        if a.get(key) != b.get(key)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."  # a digest


def _open_encoding(config: TokenizeJob) -> Encoding:
    """Load the VQ and settle where it runs. Raises ValueError when its files do not fit or the device is not there."""
    import torch

    from data_prep.encoding import BatchEncoder, EncoderSettings

    t = config.tokenize
    device = t.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ValueError(f"tokenize.device={t.device}: this machine has {torch.cuda.device_count()} CUDA devices; give auto or cpu")
    settings = EncoderSettings(package_path(config.vq.config), package_path(config.vq.checkpoint), device)
    on_cpu = device == "cpu"
    batch_size = t.batch_size if on_cpu else max(t.batch_size, CUDA_BATCH)
    workers = 0 if not on_cpu else _cores() if t.workers is None else t.workers
    identity = {"device": device.partition(":")[0], "batch_size": batch_size, "torch": torch.__version__}
    return Encoding(BatchEncoder(settings), settings, workers, batch_size, identity)


def _cores() -> int:
    """Cores this process may use (macOS cannot tell them from the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SetMaker:
    """Makes the shards that a folder lacks, in order, and then its index."""

    def __init__(self, config: TokenizeJob, source: Source, folder: SetFolder, encoding: Encoding | None, recipe: dict[str, Any]) -> None:
        self.settings, self.source, self.folder, self.encoding, self.recipe = config.tokenize, source, folder, encoding, recipe
        self.rows = len(source)
        self.shard_size = self.settings.shard_size
        self.shard_count = math.ceil(self.rows / self.shard_size)
        self.entries: dict[int, dict[str, Any]] = {}  # shard number -> its entry in the index
        self.dropped: Counter[str] = Counter()
        self.code_counts = np.zeros(encoding.encoder.model.codebook_size if encoding else 0, np.int64)

    def make(self) -> None:
        """Make what is missing and complete the set; ValueError past tokenize.max_bad, or when no sample is left."""
        identity = {"recipe": self.recipe, "encoder": self.encoding.identity if self.encoding else None}
        self.entries = self.folder.begin(identity)
        for entry in self.entries.values():
            self._count_kept(entry)
        todo = self.rows - sum(map(self._rows_of, self.entries))
        if self.entries:
            print(f"{self.folder.path}: {len(self.entries)} of {self.shard_count} shards are there already")
        started = time.perf_counter()
        self._check_dropped([])
        self._make_shards(todo)
        seconds = time.perf_counter() - started
        index = self._index(identity)
        if not index["totals"]["samples"]:
            raise ValueError(f"tokenize.source={self.settings.source}: no sample is left of {self.rows} ({_counts(self.dropped)})")
        self.folder.complete(index)
        _print_summary(self.folder.path, index, todo / seconds if todo else None)

    def _rows_of(self, number: int) -> int:
        return min(self.shard_size, self.rows - number * self.shard_size)

    def _count_kept(self, entry: dict[str, Any]) -> None:
        self.dropped.update(entry["dropped"])
        for files in group_files((self.folder.path / entry["url"]).read_bytes()).values():
            if "codes.npy" in files:
                self._count_codes(decode_codes(files["codes.npy"]))

    def _count_codes(self, codes: np.ndarray) -> None:
        self.code_counts += np.bincount(codes.ravel(), minlength=len(self.code_counts))

    def _batches(self) -> Iterator[tuple[int, list[Item]]]:
        """(shard number, items) of every batch of the shards that are not there yet."""
        rows = iter(self.source)
        size = self.encoding.batch_size if self.encoding else TEXT_BATCH
        for number in range(self.shard_count):
            of_shard = islice(rows, self._rows_of(number))
            if number in self.entries:
                deque(of_shard, maxlen=0)  # made, but not read
                continue
            while batch := list(islice(of_shard, size)):
                yield number, batch

    def _encoded(self) -> Generator[tuple[int, list[Item], list[Encoded | None]], None, None]:
        """Every batch with its codes, the reason for having none, or None (texts)."""
        if self.encoding is None:
            for number, items in self._batches():
                yield number, items, [item.problem for item in items]
            return
        from data_prep.encoding import encode_batches

        waiting: deque[tuple[int, list[Item]]] = deque()

        def images() -> Iterator[list[Callable[[], np.ndarray]]]:
            for number, items in self._batches():
                waiting.append((number, items))
                yield [item.image for item in items if item.problem is None and item.image is not None]

        encoding = self.encoding
        with closing(encode_batches(images(), encoding.encoder, encoding.settings, encoding.workers)) as results:
            for codes in results:
                number, items = waiting.popleft()
                of_batch = iter(codes)
                yield number, items, [item.problem or next(of_batch) for item in items]

    def _make_shards(self, todo: int) -> None:
        writer: ShardWriter | None = None
        left = 0
        with closing(self._encoded()) as batches, _progress(self.settings.output, todo, self.settings.progress) as advance:
            try:
                for number, items, results in batches:
                    if writer is None:
                        writer, left = ShardWriter(self.folder.path, number), self._rows_of(number)
                    self._write(writer, items, results)
                    left -= len(items)
                    if not left:
                        self.entries[number] = writer.finish()
                        writer = None
                        self.folder.record(self.entries[number])
                    advance(len(items))
            finally:
                if writer is not None:
                    writer.abort()

    def _write(self, writer: ShardWriter, items: list[Item], results: list[Encoded | None]) -> None:
        bad = []
        for item, result in zip(items, results, strict=True):
            if isinstance(result, str):
                log.warning("%s: left out: %s", item.key, result)
                bad.append(item.key)
                writer.dropped[result] += 1
                self.dropped[result] += 1
                continue
            info = {**item.info, "source": self.settings.source}
            if result is not None:
                assert self.encoding is not None
                f = self.encoding.encoder.model.downsampling
                info |= {"width": result.shape[1] * f, "height": result.shape[0] * f}
                self._count_codes(result)
            writer.add(item.key, info, item.text, result)
        self._check_dropped(bad)

    def _check_dropped(self, keys: list[str]) -> None:
        limit = self.settings.max_bad
        if self.dropped.total() > limit * self.rows:
            last = f", the last {keys[-1]}" if keys else ""
            raise ValueError(f"tokenize.max_bad={limit}: {self.dropped.total()} of {self.rows} samples cannot be used ({_counts(self.dropped)}){last}; "
                             "mend the source, or allow a larger share")  # fmt: skip

    def _index(self, identity: dict[str, Any]) -> dict[str, Any]:
        shards = [self.entries[number] for number in range(self.shard_count)]
        totals: Counter[str] = Counter()
        for shard in shards:
            totals.update(shard["totals"])
        index: dict[str, Any] = {
            "__kind__": INDEX_KIND,
            "wids_version": 1,
            "name": f"{self.settings.source}-{self.settings.split}",
            "shardlist": shards,
            "no_caption": totals.pop("no_caption", 0),  # images that serve questions only
            "dropped": dict(self.dropped),  # samples that could not be used, by reason
            "omitted": dict(self.source.omitted()),  # what the source left out by its own rules
            "totals": {"samples": 0, **totals},
            **identity,
        }
        if self.encoding:
            model = self.encoding.encoder.model
            index |= {"vq_fingerprint": model.fingerprint, "codebook_size": model.codebook_size, "downsampling": model.downsampling}
            share = self.code_counts[self.code_counts > 0] / max(1, self.code_counts.sum())
            index["codes"] = {"used": len(share), "perplexity": round(float(np.exp(-(share * np.log(share)).sum())), 3)}
        return index


@contextmanager
def _progress(label: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with samples a second and the time left; yields the function that moves it on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:,.0f}/s")
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), disable=not shown) as bar:
        task = bar.add_task(label, total=total, rate=0.0)
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(task, completed=done, rate=done / (time.perf_counter() - started))

        yield advance


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {n:,}" for reason, n in sorted(counts.items())) or "none"


def _print_summary(path: Path, index: dict[str, Any], rate: float | None) -> None:
    """What was made, in a few lines. rate: samples a second of this run, None where all shards were there."""
    totals, size = index["totals"], sum(shard["bytes"] for shard in index["shardlist"])
    print(f"{path}: {totals['samples']:,} samples in {len(index['shardlist'])} shards, {size / 2**20:.1f} MiB" + (f", {rate:,.0f} samples/s" if rate else ""))
    print(f"  dropped: {_counts(index['dropped'])}; omitted by the source: {_counts(index['omitted'])}")
    if "codes" in index:
        print(f"  {totals['questions']:,} questions; {totals['captions']:,} images with a caption, {index['no_caption']:,} without")
        print(f"  codes used: {index['codes']['used']:,} of {index['codebook_size']:,}, perplexity {index['codes']['perplexity']:,.1f}; "
              f"{size / totals['images']:,.0f} bytes an image")  # fmt: skip
    else:
        print(f"  {totals['text_characters']:,} characters of text")
