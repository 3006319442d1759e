"""The training run, readable from top to bottom: `torchrun -m liquid_train.train [overrides]`, or `liquid train [overrides]`."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from evals.heldout import heldout_set, log_heldout
from liquid_train import backbone, checkpoint, train_state
from liquid_train.attention import choose_kernel, implementation, in_words
from liquid_train.config import TASKS, TrainJob, load, package_path, to_yaml
from liquid_train.data.loader import BatchLoader, LoaderError, MicroBatch, RankBatch, batch_digest, micro_batches, one_clear_error, open_sources
from liquid_train.data.padding import padding_warning
from liquid_train.files import is_full, write_synced
from liquid_train.generate.live import live_model
from liquid_train.image_rows import fill_image_rows
from liquid_train.image_tokenizer import ImageTokenizer
from liquid_train.launcher import STOP_FILE
from liquid_train.loss import LossModule
from liquid_train.metric_families import headline
from liquid_train.metrics import Compute, batch_totals, data_ended, share_metrics, speed_metrics, step_metrics
from liquid_train.optimizer import RowRates, build_optimizer, learning_rate
from liquid_train.parallel import World, assert_dtypes, compute_dtype, parallelize, process_group, set_sync
from liquid_train.phases import Phases
from liquid_train.resume import as_lines, changes_since, continued, find_checkpoint, planned_steps
from liquid_train.run_vocabulary import make_tokenizer, open_vocabulary
from liquid_train.saver import Saver
from liquid_train.spike_guard import GuardedProgress, GuardState, Rewind, go_back, is_spike
from liquid_train.step_profile import StepProfile
from liquid_train.tracker import RunLock, Tracker
from liquid_train.vocabulary import UNCONDITIONAL, Vocabulary
from liquid_train.watchdog import Watchdog, collective_timeout, lost_peer, prepare_flight_recorder


class Run:
    """Everything one rank holds while it trains, from a checkpoint or from the start; rewind: from where a spike sent it back to."""

    def __init__(self, config: TrainJob, world: World, phases: Phases | None = None, rewind: Rewind | None = None) -> None:
        self.config, self.world, self.dir = config, world, Path(config.run.dir)
        self.phases = phases or Phases()
        self.steps = planned_steps(config)
        self.resumed_from = rewind.checkpoint if rewind else find_checkpoint(config)
        vq_config, vq_weights = package_path(config.vq.config), package_path(config.vq.checkpoint)
        self.image_tokenizer = ImageTokenizer.from_files(vq_config, vq_weights)
        self.sets = open_sources(config, self.image_tokenizer.fingerprint, self.image_tokenizer.codebook_size)
        self.progress, self.notes = self._progress()
        if rewind:
            self.progress.guard, self.progress.streams = rewind.guard, {**self.progress.streams, **rewind.streams}
        self.lock = RunLock(self.dir) if world.main else None
        if world.main and (left := checkpoint.set_aside(self.dir, self.progress.step)):
            self.notes.append(f"checkpoints of later steps are set aside: {', '.join(str(p) for p in left)}")
        self.saver = Saver(self.dir, config.checkpoint, saved_step=self.progress.step)
        self.stalled = 0.0  # seconds that training stood still for the newest checkpoint
        self.vocabulary = self._vocabulary()
        self.card = self._card()
        self.heldout = heldout_set(config, self.vocabulary, self.image_tokenizer.fingerprint) if config.evals.every else None
        left_out = self.progress.guard.left_out
        # how many steps' worth of data a run that leaves some out will need is not known yet
        unknown = config.train.spike.action == "rewind" and self.progress.step < self.steps
        self.loader = BatchLoader(
            config, self.sets, self.vocabulary, rank=world.data_rank, world=world.data_size, first_step=self.progress.step + left_out,
            steps=sys.maxsize if unknown else self.steps + left_out, states=self.progress.streams,
        )  # fmt: skip
        self.root, self.optimizer = self._model()

    def _progress(self) -> tuple[GuardedProgress, list[str]]:
        """Where the run stands, and lines that say what changed since the checkpoint."""
        shards = {name: s.digest for name, s in self.sets.items()}
        if not self.resumed_from:
            return GuardedProgress(shards=shards), []
        changes = changes_since(self.resumed_from, self.config, shards)
        progress = GuardedProgress(**vars(train_state.read_progress(self.resumed_from)[0]), guard=GuardState.of(self.resumed_from))
        progress.streams, given_up = continued(progress.streams, changes, self.config)
        progress.shards = shards
        return progress, [*(f"changed since the checkpoint: {line}" for line in as_lines(changes)), *given_up]

    def _vocabulary(self) -> Vocabulary:
        """Rank 0 makes the run's tokenizer once; everybody loads it."""
        folder = self.resumed_from / "model" if self.resumed_from else self.dir / "tokenizer"
        if self.world.main and not self.resumed_from:
            make_tokenizer(self.config, self.sets, folder)
        dist.barrier()
        return open_vocabulary(self.config, folder, self.image_tokenizer.codebook_size)

    def _card(self) -> backbone.ModelCard:
        grid = next((list(sample["codes"].shape) for s in self.sets.values() for sample in s if "codes" in sample), [])
        vq = self.config.vq
        return backbone.ModelCard(
            self.vocabulary.image_start,
            self.vocabulary.codebook_size,
            self.image_tokenizer.fingerprint,
            vq.config,
            vq.checkpoint,
            grid,
            self.config.data.prompts[0],
            null_prompt=UNCONDITIONAL if self.config.data.unconditional else "",
        )

    def _model(self) -> tuple[LossModule, torch.optim.AdamW]:
        c, settings = self.config, self.config.backbone
        hf_config = backbone.model_config(settings, self.vocabulary.text_size)
        self.softcap = getattr(hf_config, "attn_logit_softcapping", None)
        self.attention = choose_kernel(c.parallel.attention, self.world.device, compute_dtype(c.parallel), self.softcap)
        lm = backbone.build(hf_config, self.vocabulary, implementation(self.attention))
        root = LossModule.of(lm, self.vocabulary, c.loss)
        self.compute = Compute.of(lm, self.vocabulary, self.world.device)
        parallelize(root, c.parallel, self.world)
        backbone.materialize(lm, self.world.device, offloaded=c.parallel.cpu_offload)
        optimizer = build_optimizer(lm, c.optimizer)
        self.rates = RowRates(lm, self.vocabulary, c.optimizer)
        if self.resumed_from:
            train_state.load(self.resumed_from, root, optimizer)
        elif settings.init == "pretrained":
            assert settings.path is not None
            backbone.fill_from_folder(lm, settings.path)
            fill_image_rows(lm, self.vocabulary, settings.image_init, self.image_tokenizer.quantize.embedding.weight, c.seed)
        else:
            backbone.fill_random(lm, c.seed)
        return root, optimizer


def environment(world: World) -> dict[str, Any]:
    """Versions, devices and the commit, for environment.json."""
    from importlib.metadata import version

    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    names = ("torch", "transformers", "webdataset", "hydra-core", "numpy", "tokenizers", "safetensors", "wandb")
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return {
        "python": platform.python_version(), **{n: version(n) for n in names}, "platform": platform.platform(), "device": device, "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(), "git_commit": commit or None, "command": " ".join(sys.argv),
    }  # fmt: skip


class StopSignal:
    """SIGTERM or SIGUSR1 (Slurm's warning), or the launcher's file: the step at hand is finished, then all ranks save and leave."""

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
    device, phases, spikes = run.world.device, run.phases, run.config.train.spike
    phases.enter("forward")
    share = torch.stack(
        [sum((b.weights.sum().double() for b in batches), torch.zeros((), dtype=torch.float64)), torch.tensor(float(stop), dtype=torch.float64)]
    ).to(device)
    run.world.sum(share)
    total_weight, stops = share.tolist()
    per_task = torch.zeros(4, len(TASKS), dtype=torch.float64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for i, batch in enumerate(batches):
        set_sync(run.root, i == len(batches) - 1)
        if i:
            phases.enter("forward")
        output = run.root(batch.to(device))
        phases.enter("backward")
        # FSDP averages gradients over ranks; the sum is meant
        (output.total * (run.world.data_size / max(total_weight, 1e-9))).backward()
        per_task += output.per_task
        loss_sum += output.total.detach().double()
    phases.enter("optimizer")
    run.rates.mask_gradients(run.progress.step)
    norm = torch.nn.utils.clip_grad_norm_(run.root.parameters(), run.config.optimizer.grad_clip)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    sums = torch.cat([per_task.flatten(), loss_sum.view(1)])
    run.world.sum(sums)
    loss = float(sums[-1]) / max(total_weight, 1e-9)
    finite = bool(torch.isfinite(norm)) and loss == loss and abs(loss) != float("inf")  # the same on all ranks: both were reduced
    spike = finite and is_spike(loss, run.progress.guard, spikes)
    skipped = not finite or (spike and spikes.action != "warn")
    if not skipped:
        run.rates.step(run.optimizer, run.progress.step, lr)
    run.optimizer.zero_grad()
    phases.enter("logging")
    per_task = sums[:-1].view(4, -1).cpu()
    return {"loss": loss, "per_task": per_task, "grad_norm": float(norm), "finite": finite, "spike": spike, "skipped": skipped, "stop": stops > 0}


def account(run: Run, batch: RankBatch, result: dict[str, Any], lr: float, seconds: float, waited: float) -> dict[str, Any]:
    """Move the run's progress on by one step and describe the step; a collective."""
    data, progress = run.config.data, run.progress
    totals = batch_totals(batch, data, run.world)
    samples = sum({s.path: s.num_samples for s in run.sets.values()}.values())
    if totals.damaged > data.max_bad * samples:  # the same on all ranks
        found = f"{totals.damaged} of {samples} samples are damaged ({totals.dropped})"
        raise ValueError(f"data.max_bad={data.max_bad}: {found}; mend the shards, or allow a larger share")
    tokens = data.global_batch * data.seq_len
    progress.step += 1
    progress.tokens += tokens
    progress.documents += totals.documents
    for name in data.sources:
        progress.source_documents[name] = progress.source_documents.get(name, 0) + totals.source_documents[name]
        progress.source_tokens[name] = progress.source_tokens.get(name, 0) + totals.source_tokens[name]
    progress.streams.update(batch.states)
    targets = int(result["per_task"][2].sum())
    speed = speed_metrics(run.compute, run.world, tokens=tokens, targets=targets, squares=totals.squares, seconds=seconds, waited=waited)
    so_far: dict[str, Any] = {"step": progress.step, "tokens": progress.tokens, "documents": progress.documents, "skipped": progress.skipped}
    so_far |= {"spikes": progress.guard.spikes, "rewinds": progress.guard.rewinds, "left_out": progress.guard.left_out}
    so_far |= share_metrics(progress.source_documents, progress.source_tokens)
    return step_metrics(totals, result, so_far, lr, speed)


def add_digest(metrics: dict[str, Any], batch: RankBatch, world: World) -> None:
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, batch.digests())
    metrics["batch_digest"] = batch_digest({g: d for part in parts for g, d in part.items()})


def evaluate_now(run: Run, last: bool) -> dict[str, Any]:
    """Held-out loss and what evals/periodic.py measures, everything at the last step; a collective of all ranks."""
    from evals.periodic import evaluate

    assert run.heldout is not None
    metrics = log_heldout(run.root, run.heldout, run.world, run.progress.step, run.dir)
    settings = run.config.evals if run.card.null_prompt else replace(run.config.evals, guidance=1.0)  # nothing to be guided away from
    with live_model(run.root, run.root.lm, run.world.device) as model:
        metrics |= evaluate(
            model, run.vocabulary, run.image_tokenizer, settings, sets=heldout_images(run.config), grid=tuple(run.card.grid), prompt=run.card.prompt,
            step=run.progress.step, out_dir=run.dir, rank=run.world.rank, world_size=run.world.size, last=last,
        )  # fmt: skip
    return metrics


def heldout_images(config: TrainJob) -> str | None:
    """Path of the held-out set whose questions are asked while training."""
    return next((s.path for s in config.data.heldout.values() if s.task == "vqa"), None)


def start_save(run: Run) -> None:
    """Begin to write a checkpoint of this step; a collective."""
    copied = run.config.checkpoint.async_save
    run.saver.start(train_state.snapshot(run.root, run.optimizer, run.progress, run.config, run.card, run.vocabulary, run.world, copied=copied))


def save_and_wait(run: Run, tracker: Tracker | None) -> None:
    """Save a checkpoint, unless that of this step is there already; SaveFailed on all ranks when it cannot be written."""
    run.phases.enter("checkpoint")
    settle_save(run, tracker)
    if run.saver.saved_step != run.progress.step:
        start_save(run)
        run.saver.settle()


def save_and_go_on(run: Run, tracker: Tracker | None) -> None:
    """Save a checkpoint beside the next steps, once the one before is written."""
    run.phases.enter("checkpoint")
    started = time.perf_counter()
    settle_save(run, tracker)
    start_save(run)
    run.stalled = time.perf_counter() - started


def settle_save(run: Run, tracker: Tracker | None) -> None:
    """Wait for the save at hand, if there is one, and say how it ended; where it failed, there may be room again at the next one."""
    try:
        written = run.saver.settle()
    except train_state.SaveFailed as error:
        every = run.config.checkpoint.every
        again = min(max(-(-run.progress.step // every), run.saver.step // every + 1) * every, run.steps)
        say = f"{error}. Training goes on; the next checkpoint is tried at step {again}."
    else:
        if written is None:
            return
        say = f"checkpoint of step {written[0]}: training stood still for {run.stalled:.2f} s, written in {written[1]:.1f} s"
    if tracker:
        tracker.say(say)


def begin_log(run: Run) -> Tracker | None:
    """Rank 0 writes config.yaml and environment.json and opens the log."""
    if not run.world.main:
        return None
    write_synced(run.dir / "config.yaml", to_yaml(run.config))
    write_synced(run.dir / "environment.json", json.dumps(environment(run.world), indent=2))
    c = run.config
    tracker = Tracker(run.dir, c.tracker, name=c.run.name, settings=asdict(c), first_step=run.progress.step, steps=run.steps)
    parameters = sum(p.numel() for p in run.root.parameters())
    start = f"goes on from {run.resumed_from}" if run.resumed_from else "starts"
    tracker.say(
        f"{c.run.dir} {start}: {parameters:,} parameters, {run.world.size} rank(s) on {run.world.device.type}, "
        f"{run.steps} steps of {c.data.global_batch} x {c.data.seq_len} tokens"
    )
    tracker.say(in_words(run.attention, run.softcap))
    warning = padding_warning(c, run.sets, run.vocabulary)
    for line in [*run.notes, *([warning] if warning else [])]:
        tracker.say(line)
    return tracker


def train(config: TrainJob, world: World, phases: Phases) -> None:
    """Train to the planned step; resume by itself; save and leave on SIGTERM. A collective of all ranks."""
    torch.use_deterministic_algorithms(config.train.deterministic)
    phases.cuda = world.device.type == "cuda"
    stop = StopSignal()
    rewind = train_on(config, world, phases, stop)
    while rewind:
        gc.collect()  # the memory of the model before goes before that of the next one comes
        rewind = train_on(config, world, phases, stop, rewind)


def train_on(config: TrainJob, world: World, phases: Phases, stop: StopSignal, rewind: Rewind | None = None) -> Rewind | None:
    """Train from a checkpoint or the start to the end of the run, or to a spike that sends it back: to where."""
    phases.enter("start")
    run = Run(config, world, phases, rewind)
    tracker = begin_log(run)
    profile = StepProfile(config.train.profile_steps, run.dir, world)
    skipped_in_a_row = 0
    metrics: dict[str, Any] = {}
    try:
        phases.step = run.progress.step + 1
        phases.enter("data")
        before = time.perf_counter()
        for batch in run.loader:
            if data_ended(batch, config.data, world):
                end_early(run, tracker, metrics)
                break
            waited = time.perf_counter() - before
            profile.begin(phases.step)
            batches = micro_batches(config, batch, world.data_size, run.vocabulary.pad)
            lr = learning_rate(run.progress.step, run.steps, config.optimizer.lr, config.schedule)
            result = train_step(run, batches, lr, stop.received)
            skipped_in_a_row = skipped_in_a_row + 1 if result["skipped"] else 0
            if result["spike"]:
                note_spike(run, tracker, result["loss"])
            if result["spike"] and config.train.spike.action == "rewind":
                if back := leave_out(run, batch):
                    return back
                check_skipped(config, skipped_in_a_row)
                phases.enter("data")
                before = time.perf_counter()
                continue
            run.progress.skipped += not result["finite"]
            metrics = account(run, batch, result, lr, time.perf_counter() - before, waited)
            if config.train.batch_digest:
                add_digest(metrics, batch, world)
            if run.progress.step == 1:
                assert_dtypes(run.root, run.optimizer)
            say_if(tracker, profile.end(run.progress.step))
            phases.steps_done += 1
            finish_step(run, tracker, metrics)
            check_skipped(config, skipped_in_a_row)
            if result["stop"]:
                save_and_wait(run, tracker)
                say_if(tracker, f"stopped by a signal; saved step {run.progress.step}. The same command goes on from there.")
            if result["stop"] or run.progress.step == run.steps:
                break
            phases.step = run.progress.step + 1
            phases.enter("data")
            before = time.perf_counter()
        phases.enter("end")
        say_if(tracker, profile.end(run.progress.step, over=True))
        say_if(tracker, f"time of {phases.steps_done} steps: {phases.in_words()}")
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


def note_spike(run: Run, tracker: Tracker | None, loss: float) -> None:
    """Say that the loss of the step at hand is a spike and what is done about it. ValueError where training went back often enough."""
    spike, guard, step = run.config.train.spike, run.progress.guard, run.progress.step
    if spike.action == "rewind":
        settle_save(run, tracker)  # the checkpoint at hand is the one to go back to
    saved = run.saver.saved_step
    done = {"warn": "training goes on", "skip": "no optimizer step", "rewind": f"back to the checkpoint of step {saved}, on without the data since"}
    found = f"step {step + 1}: the loss jumps to {loss:.3f} (spike {guard.spikes})"
    if spike.action == "rewind" and step != saved and guard.rewinds >= spike.rewinds:
        raise ValueError(
            f"{found}, and train.spike.rewinds={spike.rewinds}: as many times training went back already; lower "
            f"optimizer.lr={run.config.optimizer.lr}, or look at the data of such a step: liquid run replay {run.dir} --step N"
        )
    say_if(tracker, f"{found}: {done[spike.action]} (train.spike.action={spike.action})")


def leave_out(run: Run, batch: RankBatch) -> Rewind | None:
    """Leave the data of a spike out, and all since the newest checkpoint: where to go back to, or None where that is where training stands."""
    run.progress.streams.update(batch.states)
    if run.progress.step != run.saver.saved_step:
        return go_back(run.progress, batch.step, run.resumed_from, run.dir)
    run.progress.guard.left_out += 1
    return None


def check_skipped(config: TrainJob, in_a_row: int) -> None:
    """ValueError when too many steps in a row were left out."""
    if in_a_row >= config.train.max_skipped:
        raise ValueError(
            f"train.max_skipped={config.train.max_skipped}: as many steps in a row had a loss or gradient that was not finite, or were spikes "
            f"that train.spike.action={config.train.spike.action} leaves out; lower optimizer.lr={config.optimizer.lr}"
        )


def finish_step(run: Run, tracker: Tracker | None, metrics: dict[str, Any]) -> None:
    """Log, evaluate and save when it is time; the last step always does."""
    c, step = run.config, run.progress.step
    last = step == run.steps
    due = step % c.tracker.every == 0 or last
    times = run.phases.take() if due else {}
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


def log_evaluation(run: Run, tracker: Tracker | None, last: bool) -> None:
    run.phases.enter("evaluation")
    started, step = time.perf_counter(), run.progress.step
    found = evaluate_now(run, last)
    if tracker:
        tracker.write({"step": step, **found})
        tracker.say(f"step {step}: {headline(found)}, in {time.perf_counter() - started:.1f} s")
        if run.config.checkpoint.best is not None:
            note_score(run, tracker, found, run.config.checkpoint.best)


def note_score(run: Run, tracker: Tracker, found: dict[str, Any], metric: str) -> None:
    """By which the best checkpoint is kept; where it cannot be noted, say so and train on."""
    step, value = run.progress.step, found.get(metric, math.nan)
    if not math.isfinite(value):
        tracker.say(f"step {step} has no score: checkpoint.best={metric} was not measured, or is not a number")
        return
    try:
        checkpoint.note_score(run.dir, step, metric, run.config.checkpoint.best_is, value)
    except OSError as error:
        tracker.say(f"step {step}: its score could not be noted ({error}). Training goes on; the best checkpoint is then one of the others.")


def end_early(run: Run, tracker: Tracker | None, metrics: dict[str, Any]) -> None:
    """Every source is used up: do what the last step does, as far as it was not done at this step; `metrics`: its, {} when none was made."""
    c, step = run.config, run.progress.step
    if tracker and metrics and step % c.tracker.every:
        tracker.write(metrics | run.phases.take())
    if metrics and c.evals.every and step % c.evals.every:
        log_evaluation(run, tracker, last=True)
    save_and_wait(run, tracker)
    if tracker:
        tracker.say(f"every source has been read data.sources.*.max_epochs times: training ends at step {step} of {run.steps}")


def main(overrides: list[str]) -> int:
    """Run one rank; 0, or 2 after one line on stderr for a user's mistake."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    gc.freeze()  # collections that walk through torch's and transformers' objects cost half a second while the data is opened
    phases = Phases()
    try:
        config = load("train", overrides)
        hangs, timeout = Path(config.run.dir) / "hangs", config.train.hang_timeout
        prepare_flight_recorder(hangs)
        with Watchdog(phases, timeout, hangs), process_group(config.parallel.tensor, collective_timeout(timeout)) as world, one_clear_error():
            train(config, world, phases)
    except LoaderError as error:  # one rank's own: the others do not know of it
        print(f"liquid train: rank {os.environ.get('RANK', 0)}: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"liquid train: {error}", file=sys.stderr)
        return 2
    except (Exception, CheckpointException) as error:
        lost = lost_peer(error)
        if not lost and not is_full(error):
            raise
        why = f"{lost} ({phases})" if lost else f"{error}; make room for run.dir={config.run.dir} and start the same command again"
        print(f"liquid train: rank {os.environ.get('RANK', 0)}: {why}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
