"""The hour with a GPU, in minutes: what a CPU cannot prove, on this machine's cards. `make gpu-check`.

Writes docs/gpu/CARD.md and .json: the `gpu` tests, attention kernels against each other, 30 steps of a 0.5B and a 1B
model with compile and activation checkpoints, losses against the CPU's, an exact resume, a tokenizing pass at 512
pixels, and image generation. Everything is random or comes with the packages: no network is needed. A part that fails
is reported as such, the others go on, and the exit status is 1.

--rehearsal: the same on the CPU with tiny models, to see that it runs; nothing is kept unless --output is given.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks.machine import machine
from liquid_train.config.compose import load
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.distributed.parallelize import process_group
from liquid_train.distributed.recompute import compiled_graphs
from liquid_train.errors import UserError
from liquid_train.generate.image_sampler import sample_images
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN
from liquid_train.model.attention import KERNELS, choose_kernel
from liquid_train.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CHAMELEON = {  # the published tokenizer's shape: 512 pixels, a code of 16 x 16
    "attn_resolutions": [],
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "double_z": False,
    "dropout": 0.0,
    "in_channels": 3,
    "num_res_blocks": 2,
    "out_ch": 3,
    "resolution": 512,
    "z_channels": 256,
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048}
WARMUP = 10  # steps that are not timed: kernels are compiled and chosen in them
Rows = list[dict[str, Any]]


@dataclass
class Check:
    """What the parts share. folder: for what is written and thrown away."""

    folder: Path
    rehearsal: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearsal else "cuda")

    @property
    def side(self) -> int:
        """Pixels."""
        return 64 if self.rehearsal else 512

    def vq(self) -> list[str]:
        """Overrides that name a random VQ of Chameleon's shape."""
        config, weights = self.folder / "vqgan.yaml", self.folder / "vqgan.safetensors"
        if not weights.exists():
            dd = CHAMELEON | ({"ch": 32, "z_channels": 32, "resolution": 64} if self.rehearsal else {})
            torch.manual_seed(0)
            model = TamingVQGAN(VQConfig(dd, 8192, dd["z_channels"]))
            torch.nn.init.normal_(model.code_vectors(), std=0.3)
            params = {"ddconfig": dd, "n_embed": 8192, "embed_dim": dd["z_channels"]}
            config.write_text(yaml.safe_dump({"model": {"params": params}}))
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
        return [f"vq.config={config}", f"vq.checkpoint={weights}"]

    def run(self, *command: str, **more: str) -> str:
        """The output of a command in the checkout; RuntimeError with its end where it fails."""
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {done.stdout[-1500:]}")
        return done.stdout

    def job(self) -> list[str]:
        """Overrides of every training: its data, its VQ, and nothing next to it."""
        sources = [f"data.sources.{task}.path={self.folder / folder}" for task, folder in SOURCES.items()]
        sources += [f"data.sources.{task}.task={task}" for task in SOURCES]
        return [*sources, *self.vq(), "evals.every=0", "tracker.wandb.mode=disabled", "tracker.progress=false"]

    def train(self, name: str, *overrides: str) -> list[dict[str, Any]]:
        """metrics.jsonl of a run in processes of its own, so that none holds another's memory; with "graphs"."""
        run = self.folder / "runs" / name
        self.run(sys.executable, "-m", "benchmarks.gpu_check", "--train", f"run.dir={run}", *self.job(), *overrides)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss" in line]


SOURCES = {"t2i": "images", "text": "texts"}


def train(overrides: list[str]) -> None:
    """Train without a save, in this process; the number of compiled graphs is added to metrics.jsonl's last line."""
    config = load("train", overrides)
    with process_group(config.parallel.tensor) as world:
        trainer = Trainer(config, world)
        trainer.open_log()
        for batch in trainer.batches():
            trainer.log(batch, trainer.step(batch))
            if trainer.done:
                break
        trainer.close()
    metrics = Path(config.run.dir) / "metrics.jsonl"
    *before, last = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*before, json.dumps(json.loads(last) | {"graphs": compiled_graphs()})]) + "\n")


def tests(check: Check) -> Rows:
    output = check.run(sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests")
    return [{"gpu tests": output.strip().splitlines()[-1].strip("= ")}]


def tokenizing(check: Check) -> Rows:
    """Also makes the data of the trainings."""
    count, folder = (8 if check.rehearsal else 512), check.folder / "pixels"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for n in range(count):
        noise = Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8))
        noise.resize((check.side, check.side), Image.Resampling.BICUBIC).save(folder / f"{n:04d}.jpg", quality=90)
        (folder / f"{n:04d}.txt").write_text(f"noise number {n} in sixteen by sixteen fields of colour")
    liquid = (sys.executable, "-m", "liquid_train.cli", "tokenize", "tokenize.progress=false")
    images = ["tokenize.source=folder", f"tokenize.input={folder}", f"tokenize.output={check.folder / 'images'}"]
    size = [f"tokenize.size={check.side}", "tokenize.crop=center"]
    begun = time.perf_counter()
    said = check.run(*liquid, *images, *size, *check.vq())
    seconds = time.perf_counter() - begun
    texts = ["tokenize.source=python_docs", "tokenize.split=train", f"tokenize.output={check.folder / 'texts'}"]
    check.run(*liquid, *texts)
    rate = re.search(r"([\d,.]+) (?:images|samples)/s", said)
    own = rate[1] if rate else f"{count / seconds:.1f} with its start"
    return [{"pixels": check.side, "images": count, "seconds with start": round(seconds, 1), "images/s": own}]


def attention(check: Check) -> Rows:
    """Qwen2.5-0.5B's heads over 4,096 packed tokens: milliseconds of forward and backward, the largest difference from
    fp32 padded_sdpa as a share of the largest value."""
    length, times = (128, 1) if check.rehearsal else (4096, 20)
    lengths = [length // 2, length // 4, length // 8, length // 8]
    plan = DocumentPlan.from_lengths(lengths).to(check.device)
    torch.manual_seed(0)
    whole = [torch.randn(1, heads, length, 64, device=check.device) for heads in (14, 2, 2)]
    rows, expected = [], None
    for kernel, dtype in (("padded_sdpa", torch.float32), *((name, torch.bfloat16) for name in KERNELS)):
        try:
            choose_kernel(kernel, check.device, dtype, None)
        except UserError as error:
            rows.append({"kernel": kernel, "ms": "-", "difference": str(error).partition(": ")[2][:80]})
            continue
        inputs = [t.to(dtype, copy=True).requires_grad_() for t in whole]

        def once(kernel: str = kernel, inputs: list[torch.Tensor] = inputs) -> list[torch.Tensor]:
            for t in inputs:
                t.grad = None
            out = KERNELS[kernel](*inputs, plan, scaling=None, softcap=None, window=None, sinks=None)
            out.float().square().sum().backward()
            return [out.detach().float(), *(t.grad.float() for t in inputs if t.grad is not None)]

        found = once()
        expected = expected or found
        share = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        milliseconds = 1000 * timed(check, once, times)
        name = f"{kernel}, {str(dtype).removeprefix('torch.')}"
        rows.append({"kernel": name, "ms": round(milliseconds, 2), "difference": f"{share:.2e}"})
    return rows


def timed(check: Check, run: Callable[[], Any], times: int) -> float:
    """Seconds of one of `times` calls, after two that are not counted."""
    for _ in range(2):
        run()
    if not check.rehearsal:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        run()
    if not check.rehearsal:
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / times


def shape(check: Check, backbone: str) -> list[str]:
    small = [f"backbone.architecture.{key}={value}" for key, value in SMALL.items()]
    sizes = ["data.seq_len=256", "data.global_batch=2", "train.micro_batch=1"]
    if not check.rehearsal:
        small, sizes = [], ["data.seq_len=4096", "data.global_batch=8", "train.micro_batch=4"]
    return [f"backbone={backbone}", "backbone.init=random", *small, *sizes, "data.workers=2"]


def training(check: Check) -> Rows:
    rows: Rows = []
    steps = WARMUP + (2 if check.rehearsal else 20)
    for backbone in ("qwen2.5-0.5b", "llama3.2-1b"):
        planned = check.run(
            *(sys.executable, "-m", "liquid_train.cli", "plan", "format=json", "parallel.shard=1", *check.vq()),
            *(o for o in shape(check, backbone) if o.startswith("backbone")),
        )
        plan = json.loads(planned[planned.index("{") :])["total_bytes_per_rank"] / 2**30
        for compile in (False, True):
            for kept in ("none", "selective", "full"):
                options = [f"parallel.compile={compile}".lower(), f"parallel.activation_checkpoint={kept}"]
                row: dict[str, Any] = {"model": backbone, "compile": compile, "checkpoint": kept}
                try:
                    name = f"{backbone}-{compile}-{kept}"
                    lines = check.train(name, *shape(check, backbone), *options, f"train.steps={steps}")
                except RuntimeError as error:
                    row |= {"tokens/s": "out of memory" if "out of memory" in str(error) else str(error)[-200:]}
                else:
                    timed_steps = lines[WARMUP:]
                    row |= {
                        "tokens/s": round(statistics.median(line["tokens_per_second"] for line in timed_steps)),
                        "MFU": round(statistics.median(line["mfu"] or 0 for line in timed_steps), 3),
                        "peak GiB": round(lines[-1]["memory_gib"], 2),
                        "planned GiB without activations": round(plan, 2),
                        "graphs": lines[-1]["graphs"],
                        "loss": f"{lines[0]['loss']:.4f} to {lines[-1]['loss']:.4f}",
                    }
                rows.append(row)
                shutil.rmtree(check.folder / "runs", ignore_errors=True)
    return rows


def losses(check: Check) -> Rows:
    """Five steps of a tiny model in fp32, here and on the CPU."""
    tiny = shape(Check(check.folder, True), "qwen2.5-0.5b")
    options = [*tiny, "parallel.precision=fp32", "train.steps=5", "data.workers=0"]
    here = check.train("here", *options)
    hidden, os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES"), ""
    try:
        there = check.train("cpu", *options)
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    pairs = zip(here, there, strict=True)
    rows = [{"step": a["step"], "here": a["loss"], "CPU": b["loss"]} for a, b in pairs]
    worst = max(abs(row["here"] - row["CPU"]) for row in rows)
    if worst > 1e-3:
        raise RuntimeError(f"losses differ by {worst:.2e} nats from the CPU's: {rows}")
    return [*rows, {"step": "largest difference", "here": f"{worst:.1e}"}]


def resume(check: Check) -> Rows:
    """Six steps at once, and three and three with a save between them: the same numbers in determinism mode."""
    tiny = shape(Check(check.folder, True), "llama3.2-1b")
    fixed = ["train.deterministic=true", "schedule=constant", "schedule.warmup=2"]
    liquid = (sys.executable, "-m", "liquid_train.cli", "train", *tiny, *check.job(), *fixed)
    found = {}
    for name, stops in (("whole", (6,)), ("resumed", (3, 6))):
        for steps in stops:
            check.run(*liquid, f"run.dir={check.folder / name}", f"train.steps={steps}")
        lines = (check.folder / name / "metrics.jsonl").read_text().splitlines()
        found[name] = [(line["loss"], line["grad_norm"]) for line in map(json.loads, lines)]
    if found["whole"] != found["resumed"]:
        raise RuntimeError(f"resumed steps differ: {found}")
    return [{"exact resume": "6 steps and 3 + 3 steps: losses and gradient norms equal to the last digit"}]


def generation(check: Check) -> Rows:
    """Eight images with guidance of a random 0.5B model."""
    from benchmarks.generation import SHAPES, build

    name = next(iter(SHAPES)) if check.rehearsal else list(SHAPES)[-1]
    model, vocabulary = build(name, "fp32" if check.rehearsal else "bf16")
    model.to(check.device)
    side = 2 if check.rehearsal else 32
    rows: Rows = []
    for compile in (False,) if check.rehearsal else (False, True):

        def draw(compile: bool = compile) -> None:
            options: dict[str, Any] = {"guidance": 7.0, "batch_size": 8, "compile": compile}
            sample_images(
                model, vocabulary, [f"red {DEFAULT_PROMPT}"] * 8, seeds=range(8), grid=(side, side), **options
            )

        seconds = timed(check, draw, 1)
        per_image = round(seconds / 8, 2)
        cost = {"ms a step": round(1000 * seconds / side**2, 2), "seconds an image": per_image}
        rows.append({"model": name, "CUDA graphs": compile, "codes": side**2, **cost})
    return rows


PARTS: dict[str, Callable[[Check], Rows]] = {
    "Tests": tests,
    "Attention": attention,
    "Tokenizing": tokenizing,
    "Losses": losses,
    "Resume": resume,
    "Generation": generation,
    "Training": training,
}


def table(rows: Rows) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(check: Check) -> tuple[dict[str, Any], bool]:
    """What every part found or why it failed, with its seconds; and whether none failed."""
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        begun = time.perf_counter()
        try:
            rows, error = part(check), ""
        except Exception as failure:
            traceback.print_exc()
            rows, error = [], f"{type(failure).__name__}: {failure}"
        seconds = round(time.perf_counter() - begun, 1)
        found[name] = {"rows": rows, "seconds": seconds, "error": error}
        print(f"## {name}, {seconds} s\n\n{error or table(rows)}\n", flush=True)
    return found, not any(part["error"] for part in found.values())


def main(argv: list[str]) -> int:
    if argv[:1] == ["--train"]:
        train(argv[1:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--rehearsal", action="store_true", help="on the CPU, with tiny models: does it run?")
    parser.add_argument("--output", type=Path, help="folder of the report (default: docs/gpu)")
    args = parser.parse_args(argv)
    if not args.rehearsal and not torch.cuda.is_available():
        print("gpu-check: no CUDA device here; --rehearsal runs it on the CPU with tiny models", file=sys.stderr)
        return 2
    card = "rehearsal" if args.rehearsal else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        found, right = measure(Check(Path(folder), args.rehearsal))
    output = args.output or (None if args.rehearsal else ROOT / "docs" / "gpu")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-").lower()
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        head = {"machine": machine(), "commit": commit.stdout.strip(), "command": "make gpu-check"}
        (output / f"{name}.json").write_text(json.dumps(head | {"parts": found}, indent=2) + "\n")
        parts = [f"## {n}, {p['seconds']} s\n\n{p['error'] or table(p['rows'])}\n" for n, p in found.items()]
        text = f"# {card}\n\n`make gpu-check` at {head['commit']}: {head['machine']}.\n\n"
        (output / f"{name}.md").write_text(text + "\n".join(parts))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
