"""Peak memory of head and loss: ours in chunks (liquid_train.model.loss) against the plain way, which makes all logits.

Plain: fp32 logits of every token and torch's cross-entropy, forward and backward. Both get the same hidden states,
weight and targets, each in a process of its own. Counted is what the pass needs beyond the process as it stands before
it (weight, hidden states and targets included) and beyond the weight's gradient, which any way must make.

The peak is the kernel's VmHWM of the process. getrusage's ru_maxrss is not used: a new process begins with its
parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine
from liquid_train.model.loss import ChunkedCrossEntropy, HeadOptions
from liquid_train.model.settings import LossConfig

MIB = 2**20
WAYS = ("plain", "chunked")
# of the logits that the plain way holds at its peak: log-probabilities, the gradient with respect to them, that to the
# logits
COPIES = 3
AIM = 0.1  # chunked against plain


def kibibytes(file: str, name: str) -> int:
    """Bytes of a line such as `VmHWM:   1024 kB` of a file below /proc."""
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def extra_bytes(way: str, tokens: int, rows: int, width: int, chunk: int) -> int:
    """Peak of one forward and backward in this process, beyond what stands before it and the weight's gradient."""
    # code and buffers of the libraries, which the first call brings in, do not count
    one_pass(way, *inputs(8, 8, 8), HeadOptions(8, 8))
    hidden, weight, targets = inputs(tokens, rows, width)
    before = kibibytes("/proc/self/status", "VmRSS")
    assert kibibytes("/proc/self/status", "VmHWM") - before < weight.nbytes, "making the inputs has set the peak"
    one_pass(way, hidden, weight, targets, HeadOptions(rows, chunk))
    return kibibytes("/proc/self/status", "VmHWM") - before - weight.nbytes


def inputs(tokens: int, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states [tokens, width], weight [rows, width] and targets [tokens]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(rows, width, generator=generator) * 0.02).requires_grad_()
    targets = torch.randint(0, rows, (tokens,), generator=generator)
    return hidden, weight, targets


def one_pass(way: str, hidden: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions) -> None:
    """Forward and backward."""
    if way == "plain":
        loss = F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")
    else:
        loss = ChunkedCrossEntropy.apply(hidden, weight, targets, torch.ones(len(targets)), options, True)[0]
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None and bool(torch.isfinite(loss))


def measured_apart(way: str, tokens: int, args: argparse.Namespace) -> int:
    """`extra_bytes` of a process of its own."""
    sizes = ["--tokens", str(tokens), "--rows", str(args.rows), "--width", str(args.width), "--chunk", str(args.chunk)]
    command = [sys.executable, "-m", "benchmarks.loss_memory", "--only", way, *sizes]
    # glibc gives every freed tensor back: tensors count, not its free lists
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(
            f"benchmarks.loss_memory: {shlex.join(command)} ended with {done.returncode} (-9: the kernel's "
            "out-of-memory killer)"
        )
    return int(json.loads(done.stdout.splitlines()[-1]))


def tokens_that_fit(tokens: int, rows: int) -> int:
    """The plain way's tokens, halved until its logits take at most two thirds of the memory that is free."""
    while tokens > 1 and COPIES * tokens * rows * 4 > kibibytes("/proc/meminfo", "MemAvailable") * 2 // 3:
        tokens //= 2
    return tokens


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=8192,
        help="target positions; ours is measured at a quarter and at four times as many too (default 8192)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=160128,
        help="entries of the vocabulary (default 160128: Qwen2.5-0.5B with 8,192 codes)",
    )
    parser.add_argument("--width", type=int, default=896, help="width of the hidden states (default 896: Qwen2.5-0.5B)")
    parser.add_argument(
        "--chunk",
        type=int,
        default=LossConfig.chunk,
        help="positions whose logits exist at a time (default loss.chunk)",
    )
    parser.add_argument("--only", choices=WAYS, help="measure one way in this process and print its bytes")
    args = parser.parse_args(argv)
    for name in ("tokens", "rows", "width", "chunk"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: must be 1 or more")
    if not Path("/proc/self/status").exists():
        parser.error("peak memory is read from /proc: Linux is needed")
    return args


@dataclass(frozen=True)
class Found:
    """Bytes: of the plain way with --tokens, and of ours with a quarter, one and four times as many."""

    plain: int
    chunked: dict[int, int]


def report(args: argparse.Namespace) -> Found:
    """Measure and print."""
    weight = args.rows * args.width * 4
    head = (
        f"memory of head and loss, {args.rows:,} entries of width {args.width}, fp32, beyond the weight and its "
        "gradient"
    )
    print(f"{head} ({weight / MIB:,.0f} MiB each)", flush=True)
    fits = tokens_that_fit(args.tokens, args.rows)
    # at its peak the weight's gradient is not there yet
    plain = (measured_apart("plain", fits, args) + weight) * args.tokens // fits - weight
    scaled = (
        ""
        if fits == args.tokens
        else f" (measured with {fits:,} tokens, which fit into the memory that is free, and scaled)"
    )
    print(f"  plain, {args.tokens:,} tokens: {plain / MIB:,.0f} MiB{scaled}", flush=True)
    chunked: dict[int, int] = {}
    for n in (max(1, args.tokens // 4), args.tokens, args.tokens * 4):
        found = chunked[n] = measured_apart("chunked", n, args)
        gradient = f"{n * args.width * 4 / MIB:,.0f} of them the hidden states' gradient"
        print(f"  in chunks of {args.chunk:,}, {n:,} tokens: {found / MIB:,.0f} MiB, {gradient}", flush=True)
    ratio = chunked[args.tokens] / plain
    print(
        f"  ratio with {args.tokens:,} tokens: {ratio:.3f}, the aim is {AIM} or less: "
        f"{'reached' if ratio <= AIM else 'not reached'}"
    )
    return Found(plain, chunked)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.only:
        print(json.dumps(extra_bytes(args.only, args.tokens, args.rows, args.width, args.chunk)))
        return
    report(args)
    arguments = shlex.join(sys.argv[1:] if argv is None else argv)
    print(f"  {machine()}\n  python -m benchmarks.loss_memory {arguments}".rstrip())


if __name__ == "__main__":
    main()
