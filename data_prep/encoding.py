"""Batches of pictures to grids of codes, in this process or in several; the results do not depend on which.

A code flips about once in 50,000 when the batch or the number of threads changes. Batches are therefore cut by the caller, the
same way for any number of processes, and every CPU encoder computes with one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.images import READ_ERRORS, reason
from liquid_train.image_tokenizer import ImageTokenizer

ReadImage = Callable[[], np.ndarray]
Encoded = np.ndarray | str  # codes [rows, columns], or why there are none
QUEUED_BATCHES = 8  # for each process: enough to keep it busy, few enough to stay small in memory

_worker_encoder: BatchEncoder | None = None  # of an encoder process, set by _start_worker


@dataclass(frozen=True)
class EncoderSettings:
    config: Path
    checkpoint: Path
    device: str


class BatchEncoder:
    """The VQ's encoder on one device, in fp32. Raises ValueError when the VQ's files cannot be used."""

    def __init__(self, settings: EncoderSettings) -> None:
        self.device = torch.device(settings.device)
        self.model = ImageTokenizer.from_files(settings.config, settings.checkpoint, parts=("encoder",)).to(self.device)
        self.dtype = np.uint16 if self.model.codebook_size <= 2**16 else np.uint32

    def __call__(self, images: Sequence[ReadImage]) -> list[Encoded]:
        """Read and encode; pictures of one size are encoded together. An unreadable one yields its reason in place of codes."""
        results: list[Encoded] = []
        by_size: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for place, read in enumerate(images):
            pixels = self._read(read)
            results.append(pixels)
            if not isinstance(pixels, str):
                by_size.setdefault(pixels.shape, []).append((place, pixels))
        for group in by_size.values():
            for (place, _), codes in zip(group, self._encode(np.stack([pixels for _, pixels in group])), strict=True):
                results[place] = codes
        return results

    def _read(self, read: ReadImage) -> Encoded:
        try:
            pixels = read()
        except READ_ERRORS as error:
            return reason(error)
        f = self.model.downsampling
        if pixels.shape[0] % f or pixels.shape[1] % f:
            return f"sides not multiples of {f}"
        return pixels

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """pixels uint8 [B, H, W, 3] -> codes [B, H/f, W/f]."""
        with torch.inference_mode():
            x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
            return self.model.encode(x).cpu().numpy().astype(self.dtype)


def encode_batches(
    batches: Iterable[Sequence[ReadImage]], encoder: BatchEncoder, settings: EncoderSettings, workers: int
) -> Generator[list[Encoded], None, None]:
    """One list of results a batch, in order. workers=0 encodes in this process with `encoder`; else so many processes do."""
    if workers == 0:
        with one_exact_thread():
            yield from map(encoder, batches)
    else:
        yield from _encode_in_processes(batches, settings, workers)


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


def _encode_in_processes(batches: Iterable[Sequence[ReadImage]], settings: EncoderSettings, workers: int) -> Generator[list[Encoded], None, None]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (settings,))
    waiting: deque[Future[list[Encoded]]] = deque()
    try:
        for images in batches:
            waiting.append(pool.submit(_encode_in_worker, images))
            if len(waiting) >= QUEUED_BATCHES * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError("an encoder process died, perhaps for want of memory; what is finished is kept: "
                           "run the same command again, with fewer tokenize.workers") from error  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(settings: EncoderSettings) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker_encoder = BatchEncoder(settings)


def _end_with_parent() -> None:
    """A pool's processes wait for work for ever when their parent is killed; this ends them with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _encode_in_worker(images: Sequence[ReadImage]) -> list[Encoded]:
    assert _worker_encoder is not None
    return _worker_encoder(images)
