"""Images to grids of codes, in this process or in several; the results do not depend on which.

    CPU   tasks of rows -> processes that read, crop and encode, one thread each
    CUDA  tasks of rows -> processes that read and crop -> batches of one size, pinned -> the device

A code flips about once in 50,000 when the batch changes. Which images share a batch is therefore a function of the
shard and the batch size alone: a batch holds images of one task (CPU) or one shard (CUDA), in order of their rows, of
one size.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.child_process import follow_parent
from data_prep.encode.crops import Crop
from data_prep.encode.patience import Patience
from data_prep.source import ImageFile, ReadImage
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.base import scale_pixels
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.preprocess import READ_ERRORS, reason
from liquid_train.image_tokenizer.settings import VQSettings

NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
QUEUED_TASKS = 8  # for each process: enough to keep it busy, few enough to stay small in memory

_worker: tuple[Crop, BatchEncoder | None, Patience] | None = None  # of a process of the pool, set by _start_worker


@dataclass(frozen=True)
class EncoderSettings:
    """precision: of the network, "fp32" or "bf16"; the distances to the codebook are fp32 always."""

    vq: VQSettings
    device: str
    precision: str
    compile: bool
    batch_size: int


@dataclass(frozen=True)
class Cropped:
    """An image ready for the VQ: uint8 [h, w, 3], and what its crop adds to KEY.json. file: the state of the file it
    was read from (ImageFile.state), where it has one of its own."""

    pixels: np.ndarray
    info: dict[str, Any]
    file: str | None = None


@dataclass(frozen=True)
class Encoded:
    """codes [rows, columns]; info and file as in Cropped."""

    codes: np.ndarray
    info: dict[str, Any]
    file: str | None = None


@dataclass
class RowTask:
    """Rows of one shard that are processed together: an image of each, None for a row without one. last: the last task
    of its shard."""

    images: Sequence[ReadImage | None]
    last: bool = False


class BatchEncoder:
    """An image tokenizer's encoder on one device. Raises UserError when its files cannot be used."""

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.model = open_image_tokenizer(settings.vq, parts=("encoder",)).to(self.device)
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        self.model.prepare_encoder(dtype, compiled=settings.compile)
        self.code_dtype = np.uint16 if self.model.codebook_size <= 2**16 else np.uint32

    def encode(self, pixels: np.ndarray) -> Tensor:
        """pixels uint8 [b, h, w, 3] -> codes [b, rows, columns] on the device; on CUDA the work may still be under
        way."""
        with torch.inference_mode():
            x = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                x = x.pin_memory().to(self.device, non_blocking=True)
            return self.model.encode(scale_pixels(x))

    def to_numpy(self, codes: Tensor) -> np.ndarray:
        return codes.cpu().numpy().astype(self.code_dtype)


class Batches:
    """Images one after the other -> batches of one size -> codes; only images of batches that are not full yet are
    held."""

    def __init__(self, encoder: BatchEncoder) -> None:
        self.encoder = encoder
        self._results: list[Any] = []
        self._waiting: dict[tuple[int, ...], list[int]] = {}  # size -> places of its images
        self._running: list[tuple[list[int], Tensor]] = []

    def add(self, images: Iterable[Cropped | str | None]) -> None:
        for image in images:
            place = len(self._results)
            self._results.append(image)
            if isinstance(image, Cropped):
                places = self._waiting.setdefault(image.pixels.shape, [])
                places.append(place)
                if len(places) == self.encoder.settings.batch_size:
                    self._encode(self._waiting.pop(image.pixels.shape))

    def _encode(self, places: list[int]) -> None:
        codes = self.encoder.encode(np.stack([self._results[place].pixels for place in places]))
        self._running.append((places, codes))
        for place in places:
            self._results[place] = replace(self._results[place], pixels=NO_PIXELS)  # they are needed no more

    def finish(self) -> list[Encoded | str | None]:
        """Results of everything added, in order; batches that are not full are encoded now."""
        for places in self._waiting.values():
            self._encode(places)
        for places, codes in self._running:
            for place, grid in zip(places, self.encoder.to_numpy(codes), strict=True):
                self._results[place] = Encoded(grid, self._results[place].info, self._results[place].file)
        results, self._results, self._waiting, self._running = self._results, [], {}, []
        return results


def prepare(read: ReadImage | None, crop: Crop, patience: Patience | None = None) -> Cropped | str | None:
    """Read and crop one image; the reason in its place when it cannot be used. Raises UserError where `patience` ends:
    it waits for images that are out of reach, which are missing ones without it. TypeError for a source that reads
    something else than an image."""
    if read is None:
        return None
    try:
        file = read.state() if isinstance(read, ImageFile) else None
        pixels = patience.read(read) if patience else read()
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)):
            found = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise TypeError(f"the source's image must be uint8 [height, width, 3], not {found}")
        if file is None and isinstance(read, ImageFile):  # it was waited for
            file = read.state()
        return Cropped(*crop(pixels), file)
    except UserError:
        raise
    except READ_ERRORS as error:
        return reason(error)


def encode_tasks(
    tasks: Iterable[RowTask], encoder: BatchEncoder, crop: Crop, workers: int, wait: float = 0.0
) -> Generator[list[Encoded | str | None], None, None]:
    """Results of the rows in order, a list for each task (CPU) or for each shard (CUDA). workers=0: all in this
    process. wait: seconds of Patience."""
    on_cpu = encoder.device.type == "cpu"
    if on_cpu and not workers:
        _keep_freed_memory()
    with one_exact_thread():
        if workers and on_cpu:
            yield from (results for _, results in _in_processes(tasks, crop, encoder.settings, workers, wait))
            return
        patience = Patience(wait)
        here = ((task, [prepare(read, crop, patience) for read in task.images]) for task in tasks)
        prepared = _in_processes(tasks, crop, None, workers, wait) if workers else here
        batches = Batches(encoder)
        for task, cropped in prepared:
            batches.add(cropped)
            if on_cpu or task.last:
                yield batches.finish()


@contextmanager
def one_exact_thread() -> Iterator[None]:
    """One CPU thread and, on CUDA, full fp32 convolutions that repeat; what was set before comes back afterwards."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(1)
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, True, False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


def _in_processes(
    tasks: Iterable[RowTask], crop: Crop, settings: EncoderSettings | None, workers: int, wait: float
) -> Iterator[tuple[RowTask, list[Any]]]:
    """(task, its images) in order, cropped by a pool of processes; with `settings` encoded by them too."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (crop, settings, wait))
    waiting: deque[tuple[RowTask, Future[list[Any]]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(_work, task.images)))
            if len(waiting) >= QUEUED_TASKS * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "an encoder process died, perhaps for want of memory; what is finished is kept: "
            "run the same command again, with fewer tokenize.workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(crop: Crop, settings: EncoderSettings | None, wait: float) -> None:
    global _worker
    follow_parent()
    torch.set_num_threads(1)
    _keep_freed_memory()
    _worker = crop, BatchEncoder(settings) if settings else None, Patience(wait)


def _keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning each to the kernel: page faults took a third of the time of
    encoding in fp32."""
    mmap_threshold, trim_threshold = -3, -1  # names of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl and macOS do not
    if mallopt:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def _work(images: Sequence[ReadImage | None]) -> list[Any]:
    assert _worker is not None
    crop, encoder, patience = _worker
    prepared = [prepare(read, crop, patience) for read in images]
    if encoder is None:
        return prepared
    batches = Batches(encoder)
    batches.add(prepared)
    return batches.finish()
