"""The training run, readable from top to bottom: `torchrun -m liquid_train.train [overrides]`, or `liquid train
[overrides]`."""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.set_threshold(100_000)  # while torch and transformers are imported, as in cli.py; `main` sets it back

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from liquid_train.config.compose import load, to_yaml
from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import LoaderError, MicroBatch, RankBatch, batch_digest, micro_batches, one_clear_error
from liquid_train.data.padding import padding_warning
from liquid_train.data.settings import TASKS
from liquid_train.distributed.hang_detection import Watchdog, collective_timeout, lost_peer, prepare_flight_recorder
from liquid_train.distributed.parallelize import World, assert_dtypes, process_group, set_sync
from liquid_train.distributed.step_timer import StepTimer
from liquid_train.errors import UserError
from liquid_train.files import is_full, write_synced
from liquid_train.launcher import STOP_FILE
from liquid_train.model.attention import describe
from liquid_train.optim.adamw import learning_rate
from liquid_train.training.evaluation import log_evaluation
from liquid_train.training.metrics import batch_totals, data_ended, share_metrics, speed_metrics, step_metrics
from liquid_train.training.profiler import StepProfile
from liquid_train.training.saving import save_and_go_on, save_and_wait, settle_save
from liquid_train.training.spikes import Rewind, go_back, is_spike, parts_of
from liquid_train.training.tracker import Tracker
from liquid_train.training.trainer import Run


def environment(world: World) -> dict[str, Any]:
    """Versions, devices and the commit, for environment.json."""
    from importlib.metadata import version

    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    names = ("torch", "transformers", "webdataset", "hydra-core", "numpy", "tokenizers", "safetensors", "wandb")
    device = (
        torch.cuda.get_device_name(world.device)
        if world.device.type == "cuda"
        else f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    )
    return {
        "python": platform.python_version(),
        **{n: version(n) for n in names},
        "platform": platform.platform(),
        "device": device,
        "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "git_commit": commit or None,
        "command": " ".join(sys.argv),
    }


class StopSignal:
    """SIGTERM or SIGUSR1 (Slurm's warning), or the launcher's file: the current step is finished, then all ranks save
    and leave."""

    def __init__(self) -> None:
        self._signalled = False
        self._file = os.environ.get(STOP_FILE)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    @property
    def received(self) -> bool:
        return self._signalled or (self._file is not None and os.path.exists(self._file))

    def _note(self, *_: Any) -> None:
        self._signalled = True


def train_step(run: Run, batches: list[MicroBatch], lr: float, stop: bool) -> dict[str, Any]:
    """Forward and backward of all micro-batches, one optimizer step. Returns sums over all ranks; a collective.

    The loss is the weighted mean over the targets of the whole global batch, whatever micro-batch or rank they are in.
    """
    device, timer, spikes = run.world.device, run.timer, run.config.train.spike
    timer.enter("forward")
    share = torch.stack(
        [
            sum((b.weights.sum().double() for b in batches), torch.zeros((), dtype=torch.float64)),
            torch.tensor(float(stop), dtype=torch.float64),
        ]
    ).to(device)
    run.world.sum(share)
    total_weight, stops = share.tolist()
    per_task = torch.zeros(4, len(TASKS), dtype=torch.float64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for i, batch in enumerate(batches):
        set_sync(run.root, i == len(batches) - 1)
        if i:
            timer.enter("forward")
        output = run.root(batch.to(device))
        timer.enter("backward")
        # FSDP averages gradients over ranks; the sum is meant
        (output.total * (run.world.data_size / max(total_weight, 1e-9))).backward()
        per_task += output.per_task
        loss_sum += output.total.detach().double()
    timer.enter("optimizer")
    run.rates.mask_gradients(run.progress.step)
    norm = torch.nn.utils.clip_grad_norm_(run.root.parameters(), run.config.optimizer.grad_clip)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    sums = torch.cat([per_task.flatten(), loss_sum.view(1)])
    run.world.sum(sums)
    loss = float(sums[-1]) / max(total_weight, 1e-9)
    # the same on all ranks: both were reduced
    finite = bool(torch.isfinite(norm)) and loss == loss and abs(loss) != float("inf")
    per_task = sums[:-1].view(4, -1).cpu()
    spike = finite and is_spike(parts_of(per_task), run.progress.guard, spikes)
    skipped = not finite or (spike and spikes.action != "warn")
    if not skipped:
        run.rates.step(run.optimizer, run.progress.step, lr)
    run.optimizer.zero_grad()
    timer.enter("logging")
    return {
        "loss": loss,
        "per_task": per_task,
        "grad_norm": float(norm),
        "finite": finite,
        "spike": spike,
        "skipped": skipped,
        "stop": stops > 0,
    }


def account(
    run: Run, batch: RankBatch, result: dict[str, Any], lr: float, seconds: float, waited: float
) -> dict[str, Any]:
    """Move the run's progress on by one step and describe the step; a collective."""
    data, progress = run.config.data, run.progress
    totals = batch_totals(batch, data, run.world)
    samples = sum({s.path: s.num_samples for s in run.sets.values()}.values())
    if totals.damaged > data.max_bad * samples:  # the same on all ranks
        found = f"{totals.damaged} of {samples} samples are damaged ({totals.dropped})"
        raise UserError(f"data.max_bad={data.max_bad}: {found}; fix the shards, or allow a larger share")
    tokens = data.global_batch * data.seq_len
    progress.step += 1
    progress.tokens += tokens
    progress.documents += totals.documents
    for name in data.sources:
        progress.source_documents[name] = progress.source_documents.get(name, 0) + totals.source_documents[name]
        progress.source_tokens[name] = progress.source_tokens.get(name, 0) + totals.source_tokens[name]
    progress.streams.update(batch.states)
    targets = int(result["per_task"][2].sum())
    speed = speed_metrics(
        run.compute,
        run.world,
        tokens=tokens,
        targets=targets,
        sum_squared_lengths=totals.sum_squared_lengths,
        seconds=seconds,
        waited=waited,
    )
    so_far: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "documents": progress.documents,
        "skipped": progress.skipped,
    }
    so_far |= {"spikes": progress.guard.spikes, "rewinds": progress.guard.rewinds, "left_out": progress.guard.left_out}
    so_far |= share_metrics(progress.source_documents, progress.source_tokens)
    return step_metrics(totals, result, so_far, lr, speed)


def assert_invariants(run: Run, batches: list[MicroBatch]) -> None:
    """What must hold at a process's first step: fp32 weights and optimizer state, as many rows as the vocabulary has,
    no id beyond it."""
    assert_dtypes(run.root, run.optimizer)
    lm: Any = run.root.lm
    tables = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    assert all(table.shape[0] == run.vocabulary.rows for table in tables), (
        "embedding and head must have a row for every id"
    )
    assert all(int(b.input_ids.max()) < run.vocabulary.image_end for b in batches), "an id lies beyond the vocabulary"


def add_digest(metrics: dict[str, Any], batch: RankBatch, world: World) -> None:
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, batch.digests())
    metrics["batch_digest"] = batch_digest({g: d for part in parts for g, d in part.items()})


def begin_log(run: Run) -> Tracker | None:
    """Rank 0 writes config.yaml and environment.json and opens the log."""
    if not run.world.main:
        return None
    write_synced(run.dir / "config.yaml", to_yaml(run.config))
    write_synced(run.dir / "environment.json", json.dumps(environment(run.world), indent=2))
    c = run.config
    tracker = Tracker(
        run.dir, c.tracker, name=c.run.name, settings=asdict(c), first_step=run.progress.step, steps=run.steps
    )
    parameters = sum(p.numel() for p in run.root.parameters())
    start = f"goes on from {run.resumed_from}" if run.resumed_from else "starts"
    tracker.say(
        f"{c.run.dir} {start}: {parameters:,} parameters, {run.world.size} rank(s) on {run.world.device.type}, "
        f"{run.steps} steps of {c.data.global_batch} x {c.data.seq_len} tokens"
    )
    tracker.say(describe(run.attention, run.softcap))
    warning = padding_warning(c, run.sets, run.vocabulary)
    for line in [*run.notes, *([warning] if warning else [])]:
        tracker.say(line)
    return tracker


def train(config: TrainJob, world: World, timer: StepTimer) -> None:
    """Train to the planned step; resume by itself; save and leave on SIGTERM. A collective of all ranks."""
    torch.use_deterministic_algorithms(config.train.deterministic)
    timer.cuda = world.device.type == "cuda"
    stop = StopSignal()
    rewind = train_on(config, world, timer, stop)
    while rewind:
        gc.collect()  # the memory of the model before goes before that of the next one comes
        rewind = train_on(config, world, timer, stop, rewind)


def train_on(
    config: TrainJob, world: World, timer: StepTimer, stop: StopSignal, rewind: Rewind | None = None
) -> Rewind | None:
    """Train from a checkpoint or the start to the end of the run, or to a spike that sends it back: to where."""
    timer.enter("start")
    run = Run(config, world, timer, rewind)
    tracker = begin_log(run)
    profile = StepProfile(config.train.profile_steps, run.dir, world)
    skipped_in_a_row = 0
    metrics: dict[str, Any] = {}
    try:
        timer.step = run.progress.step + 1
        timer.enter("data")
        before = time.perf_counter()
        for batch in run.loader:
            if data_ended(batch, config.data, world):
                end_early(run, tracker, metrics)
                break
            waited = time.perf_counter() - before
            profile.begin(timer.step)
            batches = micro_batches(config, batch, world.data_size, run.vocabulary.pad)
            lr = learning_rate(run.progress.step, run.steps, config.optimizer.lr, config.schedule)
            result = train_step(run, batches, lr, stop.received)
            skipped_in_a_row = skipped_in_a_row + 1 if result["skipped"] else 0
            if result["spike"]:
                report_spike(run, tracker, result["loss"])
            if result["spike"] and config.train.spike.action == "rewind":
                if back := leave_out(run, batch):
                    return back
                check_skipped(config, skipped_in_a_row)
                timer.enter("data")
                before = time.perf_counter()
                continue
            run.progress.skipped += not result["finite"]
            metrics = account(run, batch, result, lr, time.perf_counter() - before, waited)
            if config.train.batch_digest:
                add_digest(metrics, batch, world)
            if not timer.steps_done:
                assert_invariants(run, batches)
            say_if(tracker, profile.end(run.progress.step))
            timer.steps_done += 1
            finish_step(run, tracker, metrics)
            check_skipped(config, skipped_in_a_row)
            if result["stop"]:
                save_and_wait(run, tracker)
                say_if(
                    tracker,
                    f"stopped by a signal; saved step {run.progress.step}. The same command goes on from there.",
                )
            if result["stop"] or run.progress.step == run.steps:
                break
            timer.step = run.progress.step + 1
            timer.enter("data")
            before = time.perf_counter()
        timer.enter("end")
        say_if(tracker, profile.end(run.progress.step, over=True))
        say_if(tracker, f"time of {timer.steps_done} steps: {timer.describe()}")
    finally:
        run.saver.close()
        if tracker:
            tracker.close()
        if run.lock:
            run.lock.release()
        del run.root, run.optimizer, run.rates  # before the process group goes (see parallel.process_group)
    return None


def say_if(tracker: Tracker | None, line: str | None) -> None:
    """Rank 0 has the tracker, and says it."""
    if tracker and line:
        tracker.say(line)


def report_spike(run: Run, tracker: Tracker | None, loss: float) -> None:
    """Say that the loss of the current step is a spike and what is done about it. UserError where training went back
    often enough."""
    spike, guard, step = run.config.train.spike, run.progress.guard, run.progress.step
    if spike.action == "rewind":
        settle_save(run, tracker)  # the current checkpoint is the one to go back to
    saved = run.saver.saved_step
    done = {
        "warn": "training goes on",
        "skip": "no optimizer step",
        "rewind": f"back to the checkpoint of step {saved}, on without the data since",
    }
    found = f"step {step + 1}: the loss jumps to {loss:.3f} (spike {guard.spikes})"
    if spike.action == "rewind" and step != saved and guard.rewinds >= spike.rewinds:
        raise UserError(
            f"{found}, and train.spike.rewinds={spike.rewinds}: as many times training went back already; lower "
            f"optimizer.lr={run.config.optimizer.lr}, or look at the data of such a step: liquid run replay "
            f"{run.dir} --step N"
        )
    say_if(tracker, f"{found}: {done[spike.action]} (train.spike.action={spike.action})")


def leave_out(run: Run, batch: RankBatch) -> Rewind | None:
    """Leave the data of a spike out, and all since the newest checkpoint: where to go back to, or None where that is
    where training stands."""
    run.progress.streams.update(batch.states)
    if run.progress.step != run.saver.saved_step:
        return go_back(run.progress, batch.step, run.resumed_from, run.dir)
    run.progress.guard.left_out += 1
    return None


def check_skipped(config: TrainJob, in_a_row: int) -> None:
    """UserError when too many steps in a row were left out."""
    if in_a_row >= config.train.max_skipped:
        raise UserError(
            f"train.max_skipped={config.train.max_skipped}: as many steps in a row had a loss or gradient that was "
            "not finite, or were spikes "
            f"that train.spike.action={config.train.spike.action} leaves out; lower optimizer.lr={config.optimizer.lr}"
        )


def finish_step(run: Run, tracker: Tracker | None, metrics: dict[str, Any]) -> None:
    """Log, evaluate and save when it is time; the last step always does."""
    c, step = run.config, run.progress.step
    last = step == run.steps
    due = step % c.tracker.every == 0 or last
    times = run.timer.take() if due else {}
    if tracker:
        if due:
            tracker.write(metrics | times)
        tracker.show(metrics)
    if c.evals.every and (step % c.evals.every == 0 or last):
        log_evaluation(run, tracker, last)
    if run.saver.ended():
        settle_save(run, tracker)
    if last:
        save_and_wait(run, tracker)
    elif step % c.checkpoint.every == 0:
        save_and_go_on(run, tracker)


def end_early(run: Run, tracker: Tracker | None, metrics: dict[str, Any]) -> None:
    """Every source is used up: do what the last step does, as far as it was not done at this step; `metrics`: its, {}
    when none was made."""
    c, step = run.config, run.progress.step
    if tracker and metrics and step % c.tracker.every:
        tracker.write(metrics | run.timer.take())
    if metrics and c.evals.every and step % c.evals.every:
        log_evaluation(run, tracker, last=True)
    save_and_wait(run, tracker)
    if tracker:
        tracker.say(
            f"every source has been read data.sources.*.max_epochs times: training ends at step {step} of {run.steps}"
        )


def main(overrides: list[str]) -> int:
    """Run one rank; 0, or 2 after one line on stderr for a user's mistake."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # collections that walk through torch's and transformers' objects cost half a second while the data is opened
    gc.freeze()
    gc.set_threshold(700, 10, 10)  # Python's own, which cli.py raises for the imports
    timer = StepTimer()
    try:
        config = load("train", overrides)
        hangs, timeout = Path(config.run.dir) / "hangs", config.train.hang_timeout
        prepare_flight_recorder(hangs)
        with (
            Watchdog(timer, timeout, hangs),
            process_group(config.parallel.tensor, collective_timeout(timeout)) as world,
            one_clear_error(),
        ):
            train(config, world, timer)
    except LoaderError as error:  # one rank's own: the others do not know of it
        print(f"liquid train: rank {os.environ.get('RANK', 0)}: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"liquid train: {error}", file=sys.stderr)
        return 2
    except (Exception, CheckpointException) as error:
        lost = lost_peer(error)
        if not lost and not is_full(error):
            raise
        why = (
            f"{lost} ({timer})"
            if lost
            else f"{error}; make room for run.dir={config.run.dir} and start the same command again"
        )
        print(f"liquid train: rank {os.environ.get('RANK', 0)}: {why}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
