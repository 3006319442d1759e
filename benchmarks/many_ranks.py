"""What grows with the number of ranks: seconds, collectives, bytes and files of a tiny model on --ranks gloo ranks.

    python -m benchmarks.many_ranks [--ranks 4 16] [--resume 3 12]

For every number of ranks: three steps and a save, gone on with on as many ranks as --resume says for two steps more.
Collectives are those that torch's profiler sees on rank 0 in the last step; bytes are those that all ranks send through
the machine's loopback in it, divided by the ranks. A rank takes 0.5 to 0.8 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import machine
from liquid_train.checkpoint.folder import committed
from liquid_train.config.compose import load
from liquid_train.distributed.parallelize import process_group
from liquid_train.training.trainer import Trainer

STEPS = 3
COLLECTIVES = ("c10d::", "_c10d_functional::")
NOT_COUNTED = ("wait_tensor", "c10d::barrier")  # a wait, and what this program itself adds


def loopback_bytes() -> int:
    """Sent through `lo` since the machine started."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def rank_main(overrides: list[str], result: Path) -> None:
    """One rank: trains to the planned end, saves, and rank 0 writes what it has seen."""
    config = load("train", overrides)
    begun = time.perf_counter()
    with process_group(config.parallel.tensor) as world:
        trainer = Trainer(config, world)
        trainer.open_log()
        started, seconds, seen = time.perf_counter() - begun, [], Counter[str]()
        sent = 0
        for batch in trainer.batches():
            dist.barrier()
            before, at = loopback_bytes(), time.perf_counter()
            with profile(activities=[ProfilerActivity.CPU]) as found:
                trainer.log(batch, trainer.step(batch))
            seconds.append(time.perf_counter() - at)
            dist.barrier()
            sent = loopback_bytes() - before
            names = [event.name for event in found.events()]
            seen = Counter(n for n in names if n.startswith(COLLECTIVES) and not n.endswith(NOT_COUNTED))
            if trainer.done:
                break
        at = time.perf_counter()
        trainer.save()
        saved = time.perf_counter() - at
        memory = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20], dtype=torch.float64)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        if world.main:
            files = [p for p in committed(Path(config.run.dir))[-1].rglob("*") if p.is_file()]
            result.write_text(
                json.dumps(
                    {
                        "ranks": world.size,
                        "start s": started,
                        "step s": statistics.median(seconds[1:] or seconds),
                        "collectives a step": sum(seen.values()),
                        "MB a rank and step": sent / world.size / 1e6,
                        "save s": saved,
                        "files": len(files),
                        "MB of the checkpoint": sum(p.stat().st_size for p in files) / 1e6,
                        "GiB a rank": float(memory),
                        "kinds": dict(seen),
                    }
                )
            )
        trainer.close()
        del trainer


def start(ranks: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run `rank_main` on so many ranks; what rank 0 has seen."""
    result = folder / "result.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *torchrun, "-m", "benchmarks.many_ranks", "--rank", str(result), *overrides]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def texts(folder: Path) -> str:
    """A shard set of texts below `folder`."""
    rows = (json.dumps({"text": f"The square number {i} is red. " + "word " * (i % 40)}) for i in range(2000))
    (folder / "texts.jsonl").write_text("\n".join(rows))
    keys = ["source=text", f"input={folder}/texts.jsonl", f"output={folder}/texts", "progress=false"]
    liquid = [sys.executable, "-m", "liquid_train.cli", "tokenize", *(f"tokenize.{key}" for key in keys)]
    subprocess.run(liquid, check=True, capture_output=True)
    return f"{folder}/texts"


def main(argv: list[str]) -> int:
    if argv[:1] == ["--rank"]:
        rank_main(argv[2:], Path(argv[1]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--resume", type=int, nargs="+", default=[3, 12])
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = [f"data.sources.text.path={texts(folder)}", "data.sources.text.task=text", "backbone=tiny"]
        own += ["data.seq_len=256", "data.workers=0", f"data.global_batch={max(args.ranks)}", "evals.every=0"]
        own += ["train.micro_batch=1", "parallel.precision=fp32", "tracker.wandb.mode=disabled"]
        own += ["tracker.progress=false", "checkpoint.every=1000"]
        rows = []
        for ranks, resumed in zip(args.ranks, args.resume, strict=True):
            run = [*own, f"run.dir={folder}/{ranks}"]
            rows.append({"": f"{ranks} ranks", **start(ranks, [*run, f"train.steps={STEPS}"], folder)})
            rows.append(
                {"": f"... gone on with on {resumed}", **start(resumed, [*run, f"train.steps={STEPS + 2}"], folder)}
            )
    print(machine())
    names = [name for name in rows[0] if name not in ("kinds", "ranks")]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{row[n]:.3g}" if isinstance(row[n], float) else str(row[n]) for n in names) + " |")
    for row in rows[::2]:
        print(row[""], row["kinds"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
