"""What one rank holds while it trains, and what it does with it: a step, its log line, evaluations, checkpoints, and
recovery from a spike of the loss."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.checkpoint.async_writer import Saver
from liquid_train.checkpoint.resume import find_checkpoint, planned_steps
from liquid_train.checkpoint.state import SaveFailed, snapshot
from liquid_train.config.compose import to_yaml
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import MicroBatch, RankBatch, batch_digest, micro_batches
from liquid_train.data.damage import Damage, DamageCount
from liquid_train.data.fit import check_fit, check_skip
from liquid_train.data.loader import BatchLoader, open_sources
from liquid_train.data.padding import padding_warning
from liquid_train.data.settings import DataConfig
from liquid_train.data.tasks import task_names
from liquid_train.distributed.parallelize import World, assert_dtypes, compute_dtype, set_sync
from liquid_train.distributed.recompute import compiled_graphs
from liquid_train.distributed.signals import Interrupted, StopSignal
from liquid_train.distributed.step_timer import StepTimer
from liquid_train.errors import UserError
from liquid_train.files import write_synced, writing
from liquid_train.generate.backbone_proof import check_trainable
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.model.attention import choose_kernel
from liquid_train.model.backbone import check_backbone
from liquid_train.optim.schedule import learning_rate, peak_warning
from liquid_train.report.metric_families import headline
from liquid_train.training.config_history import last_settings, record_changes
from liquid_train.training.drop_guard import DropGuard
from liquid_train.training.environment import environment
from liquid_train.training.evaluation import PeriodicEvaluation, record_score
from liquid_train.training.finite import all_finite
from liquid_train.training.first_step import FirstStep
from liquid_train.training.metrics import (
    StepResult,
    all_dropped,
    batch_totals,
    data_ended,
    progress_metrics,
    speed_metrics,
    step_metrics,
)
from liquid_train.training.profiler import StepProfile
from liquid_train.training.setup import (
    build_card,
    build_model,
    build_vocabulary,
    check_image_rows,
    check_positions,
    restore_progress,
)
from liquid_train.training.spikes import Rewind, check_skipped, go_back, is_spike, shares_and_losses, spike_report
from liquid_train.training.tracker import RunLock, Tracker

log = logging.getLogger(__name__)


class Trainer:
    """One rank's part of a run, from a checkpoint or from the start. rewind: where a spike sent the run back to.

    All methods but `close` are collectives: every rank calls them in the same order.
    """

    def __init__(
        self, config: TrainJob, world: World, timer: StepTimer | None = None, rewind: Rewind | None = None
    ) -> None:
        self.config, self.world, self.dir = config, world, Path(config.run.dir)
        self.timer = timer or StepTimer()
        self.steps, self.tasks = planned_steps(config), task_names(config.data)
        check_trainable(config.backbone, check_backbone(config.backbone))
        choose_kernel(config.parallel.attention, world.device, compute_dtype(config.parallel), None)
        self.resumed_from = rewind.checkpoint if rewind else find_checkpoint(config)
        self.image_tokenizer = open_image_tokenizer(config.vq)
        image_rows = check_image_rows(config, self.image_tokenizer)
        fingerprint, codebook_size = self.image_tokenizer.fingerprint, self.image_tokenizer.codebook_size
        self.sets = open_sources(self._patient(config), fingerprint, codebook_size)
        for shards in self.sets.values():
            shards.damage.announce = False  # each process meets its own part of it: step by step, see _count_damage
        self.damage = DamageCount({str(s.path): s.num_samples for s in self.sets.values()})
        self.progress, self.notes = restore_progress(config, self.resumed_from, self.sets)
        if not self.resumed_from:
            self.notes += image_rows
        if rewind:
            self.progress.guard, self.progress.streams = rewind.guard, {**self.progress.streams, **rewind.streams}
        with self._writing():
            self.lock = RunLock(self.dir) if world.main else None
            if world.main and (moved := checkpoint.set_aside(self.dir, self.progress.step)):
                self.notes.append(f"checkpoints of later steps are set aside: {', '.join(str(p) for p in moved)}")
        self.saver = Saver(self.dir, config.checkpoint, saved_step=self.progress.step)
        with self._writing():
            self.vocabulary = build_vocabulary(config, self.resumed_from, self.sets, codebook_size, world.main)
        check_fit(config.data, self.sets, self.vocabulary)
        self.notes += [*check_skip(config.data, self.sets), *check_positions(config, self.vocabulary)]
        self.drops = DropGuard(config.data.max_dropped)
        self.card = build_card(config, self.sets, self.vocabulary, self.image_tokenizer)
        self.evaluation = (
            PeriodicEvaluation(config, self.vocabulary, self.image_tokenizer, self.card, world)
            if config.evals.every
            else None
        )
        self.loader = self._loader()
        model = build_model(config, self.resumed_from, self.vocabulary, self.image_tokenizer, world)
        self.root, self.optimizer, self.rates = model.root, model.optimizer, model.rates
        self.compute, self.attention = model.compute, model.attention
        if model.loaded:
            self.notes.append(f"weights: rank {world.rank} {model.loaded}")
        self._check_first_weights()
        self.profile = StepProfile(config.train.profile_steps, self.dir, world)
        self.tracker: Tracker | None = None  # the main rank's, once the log is open
        self.first_step: FirstStep | None = None  # the main rank's, from then on until it is done
        self.out_of_data = False
        self._skipped_in_a_row = 0
        self._save_waits = False  # one is due, and steps are being left out
        self._dropped: dict[str, int] = {}  # documents left out by reason, as of the last step that was logged
        self._metrics: dict[str, Any] = {}  # of the last step; {} before the first
        self._step_begun = self._waited = 0.0
        self._stalled = 0.0  # seconds that training stood still for the newest checkpoint

    def _writing(self) -> AbstractContextManager[None]:
        """Around what does nothing but write to the run's folder: UserError where that cannot be done."""
        return writing(self.dir, f"run.dir={self.dir}", "make room there, and start the same command again")

    @staticmethod
    def _patient(config: TrainJob) -> DataConfig:
        """The data's settings, with a wait for shards that ends before other ranks take it for a hang."""
        data, limit = config.data, config.train.hang_timeout
        return data if limit is None else replace(data, retry_seconds=min(data.retry_seconds, limit / 2))

    def _loader(self) -> BatchLoader:
        left_out = self.progress.guard.left_out
        # a run that leaves data out after spikes may need more of it than its steps: how much is not known yet
        open_end = self.config.train.spike.action == "rewind" and self.progress.step < self.steps
        return BatchLoader(
            self.config.data,
            self.config.seed,
            self.sets,
            self.vocabulary,
            rank=self.world.data_rank,
            world=self.world.data_size,
            first_step=self.progress.step + left_out,
            steps=sys.maxsize if open_end else self.steps + left_out,
            states=self.progress.streams,
        )

    @property
    def done(self) -> bool:
        """Whether the last planned step has been made."""
        return self.progress.step == self.steps

    def open_log(self) -> None:
        """The main rank writes config.yaml and environment.json and opens the log."""
        if not self.world.main:
            return
        c = self.config
        with self._writing():
            before = last_settings(self.dir, self.resumed_from)
            write_synced(self.dir / "config.yaml", to_yaml(c))
            self.notes += record_changes(self.dir, before, c, self.progress.step)
            write_synced(self.dir / "environment.json", json.dumps(environment(self.world), indent=2))
            self.tracker = Tracker(
                self.dir,
                c.tracker,
                name=c.run.name,
                settings=asdict(c),
                first_step=self.progress.step,
                steps=self.steps,
            )
        parameters = sum(p.numel() for p in self.root.parameters())
        start = f"goes on from {self.resumed_from}" if self.resumed_from else "starts"
        self._report(
            f"{c.run.dir} {start}: {parameters:,} parameters, {self.world.size} rank(s) on {self.world.device.type}, "
            f"{self.steps} steps of {c.data.global_batch} x {c.data.seq_len} tokens"
        )
        warning = peak_warning(self.steps, c.optimizer.lr, c.schedule)
        self._report(warning, logging.WARNING)
        self._report(self.profile.warning(self.progress.step + 1, self.steps), logging.WARNING)
        for line in [self.attention, *self.notes, padding_warning(c.data, c.seed, self.sets, self.vocabulary)]:
            self._report(line)
        self.first_step = FirstStep(self.timer)

    def _report(self, line: str | None, level: int = logging.INFO) -> None:
        """Log what all ranks know, once: on the main rank."""
        if self.world.main and line:
            log.log(level, line)

    def batches(self, stop: StopSignal | None = None) -> Iterator[RankBatch]:
        """This rank's part of one global batch after another. When every source is used up: sets out_of_data, ends.

        stop: what tells this rank to stop; if it does so while data is read, the batch is one that `step` refuses.
        """
        batches = iter(self.loader)
        while True:
            self.timer.step = self.progress.step + 1
            self.timer.enter("data")
            self._step_begun = time.perf_counter()
            try:
                with stop.interrupting() if stop else nullcontext():
                    batch = next(batches, None)
            except Interrupted:
                batch = RankBatch(self.progress.step, {}, {}, {}, ended=False, interrupted=True)
            if batch is None:
                return
            if data_ended(batch, self.config.data, self.world):
                self.out_of_data = True
                return
            self._waited = time.perf_counter() - self._step_begun
            self.profile.begin(self.timer.step)
            yield batch

    def step(self, batch: RankBatch, stop: bool = False) -> StepResult:
        """Forward and backward of all micro-batches, then one optimizer step, unless the loss or gradient is not finite
        or is a spike to be left out. stop: this rank has been told to.

        The loss is the weighted mean over the targets of the whole global batch, whatever micro-batch or rank they are
        in. Raises Interrupted, on all ranks, where one has no batch because it has been told to stop.
        """
        c, progress = self.config, self.progress
        batches = micro_batches(
            c.data,
            c.loss,
            batch,
            micro_batch=c.train.micro_batch,
            world=self.world.data_size,
            pad=self.vocabulary.pad,
        )
        lr = learning_rate(progress.step, self.steps, c.optimizer.lr, c.schedule)
        self.timer.enter("forward")
        weight = sum((b.weights.sum().double() for b in batches), torch.zeros((), dtype=torch.float64))
        told = torch.tensor([float(stop), float(batch.interrupted)], dtype=torch.float64)
        shared = torch.cat([weight.view(1), told])  # on the host: a GPU is still at the step before
        self.world.sum(shared)
        total_weight, stops, interrupted = shared.tolist()
        if interrupted:
            raise Interrupted
        sums = self._forward_backward(batches, total_weight)
        self.timer.enter("optimizer")
        self.rates.mask_gradients(progress.step)
        norm = torch.nn.utils.clip_grad_norm_(self.root.parameters(), c.optimizer.grad_clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.world.sum(sums)
        # the host waits for the device here and nowhere else; the same on all ranks: both were reduced
        *found, loss_sum, router, grad_norm = torch.cat([sums, norm.double().view(1)]).tolist()
        loss, per_task = loss_sum / max(total_weight, 1e-9), torch.tensor(found, dtype=torch.float64).view(4, -1)
        finite = math.isfinite(grad_norm) and math.isfinite(loss)
        spike = finite and is_spike(shares_and_losses(per_task, self.tasks), progress.guard, c.train.spike)
        skipped = not finite or (spike and c.train.spike.action != "warn")
        if not skipped:
            self.rates.step(self.optimizer, progress.step, lr)
        self.optimizer.zero_grad()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        self.timer.enter("logging")
        if not self.timer.steps_done:
            self._assert_invariants(batches)
        rewinds = spike and c.train.spike.action == "rewind"
        return StepResult(
            loss, per_task, self.tasks, router, grad_norm, lr, finite, spike, skipped, rewinds, stop=stops > 0
        )

    def _forward_backward(self, batches: list[MicroBatch], total_weight: float) -> Tensor:
        """Gradients of the global batch's mean loss. Returns this rank's sums, fp64 [4 * tasks + 2]: LossOutput's
        per_task, flat, the weighted loss, and the balance of the routers."""
        device = self.world.device
        per_task = torch.zeros(4, len(self.tasks), dtype=torch.float64, device=device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        for i, batch in enumerate(batches):
            set_sync(self.root, i == len(batches) - 1)
            if self.first_step:
                self.first_step.begin(i, len(batches))
            if i:
                self.timer.enter("forward")
            output = self.root(batch.to(device))
            self.timer.enter("backward")
            # FSDP averages gradients over the data ranks, and we want their sum
            (output.total * (self.world.data_size / max(total_weight, 1e-9))).backward()
            per_task += output.per_task
            loss_sum += output.total.detach().double()
        balance = self.root.balance
        router = balance.take(device) if balance else torch.zeros_like(loss_sum)
        return torch.cat([per_task.flatten(), loss_sum.view(1), router.view(1)])

    def _assert_invariants(self, batches: list[MicroBatch]) -> None:
        """At a process's first step: fp32 weights and optimizer state, as many rows as the vocabulary has, no id beyond
        it, and compiled graphs where they are wanted."""
        assert_dtypes(self.root, self.optimizer)
        assert compiled_graphs() or not self.config.parallel.compile, "parallel.compile=true has compiled nothing"
        lm: Any = self.root.lm
        tables = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
        assert all(table.shape[0] == self.vocabulary.rows for table in tables), (
            "embedding and head must have a row for every id"
        )
        highest = self.vocabulary.image_end
        assert all(int(b.input_ids.max()) < highest for b in batches), "an id lies beyond the vocabulary"

    def _end_first_step(self) -> None:
        if self.first_step:
            self.first_step.end()
            self.first_step = None

    def _is_logged(self, step: int) -> bool:
        return step % self.config.tracker.every == 0 or step == self.steps

    def log(self, batch: RankBatch, result: StepResult) -> None:
        """Count the step as done and log it."""
        metrics = self._metrics = self._advance(batch, result)
        step = self.progress.step
        if self.config.train.batch_digest:
            parts: list[Any] = [None] * self.world.size
            dist.all_gather_object(parts, batch.digests())
            metrics["batch_digest"] = batch_digest({g: d for part in parts for g, d in part.items()})
        self._report(self.profile.end(step))
        self._end_first_step()
        self.timer.steps_done += 1
        due = self._is_logged(step)
        times = self.timer.take() if due else {}
        if self.tracker:
            if due:
                self.tracker.write(metrics | times)
            self.tracker.show(metrics)

    def _advance(self, batch: RankBatch, result: StepResult) -> dict[str, Any]:
        """Move the progress on by one step and return the step's metrics. UserError for too many damaged samples."""
        data, progress = self.config.data, self.progress
        seconds = time.perf_counter() - self._step_begun
        totals = batch_totals(batch, data, self.world, reasons=self._is_logged(progress.step + 1))
        self._dropped = totals.dropped or self._dropped
        left_out = self._count_damage(totals.damage)
        for line in self.drops.report(self._dropped):
            self._report(line, logging.WARNING)
        if source := self.drops.too_many(totals.asked, totals.lost):  # the same on all ranks
            reasons = all_dropped(batch.lost, self.world)
            self.drops.refuse(source, totals.asked[source], totals.lost[source], reasons)
        tokens = data.global_batch * data.seq_len
        progress.step += 1
        progress.skipped += not result.finite
        progress.tokens += tokens
        progress.documents += totals.documents
        for name in data.sources:
            progress.source_documents[name] = progress.source_documents.get(name, 0) + totals.source_documents[name]
            progress.source_tokens[name] = progress.source_tokens.get(name, 0) + totals.source_tokens[name]
        progress.streams.update(batch.states)
        speed = speed_metrics(
            self.compute,
            self.world,
            tokens=tokens,
            targets=int(result.per_task[2].sum()),
            sum_squared_lengths=totals.sum_squared_lengths,
            seconds=seconds,
            waited=self._waited,
        )
        totals = replace(totals, dropped={**self._dropped, **left_out})
        return step_metrics(totals, result, progress_metrics(progress), speed)

    def _check_first_weights(self) -> None:
        """UserError where a checkpoint or a published model holds weights that are not finite; a collective."""
        c = self.config
        source = f"checkpoint.resume={self.resumed_from}" if self.resumed_from else f"backbone.path={c.backbone.path}"
        begins_anew = self.resumed_from is None and c.backbone.init != "pretrained"
        if not begins_anew and not all_finite(self.root, self.optimizer, self.world):
            raise UserError(
                f"{source}: holds weights that are not finite, which no training repairs; start from another one "
                "(checkpoint.resume=FOLDER, or none)"
            )

    def check_weights(self) -> None:
        """UserError where this step's weights or optimizer state are not finite: nothing is measured with them, and
        they are not saved. A collective."""
        if all_finite(self.root, self.optimizer, self.world):
            return
        self._settle()  # the save that is under way is of an earlier step
        saved = self.saver.saved_step
        kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
        raise UserError(
            f"step {self.progress.step}: the weights are not finite any more, and are not saved; {kept}; lower "
            f"optimizer.lr={self.config.optimizer.lr}"
        )

    def _count_damage(self, found: list[Damage]) -> dict[str, int]:
        """Count what any rank has found damaged, and name the first sample of each reason. Returns what each source
        leaves out for it so far, by "source: reason". UserError for too many damaged samples."""
        for entry in self.damage.add(found):  # the same on all ranks
            self._report(f"{entry}; metrics.jsonl counts others like it (dropped/...)", logging.WARNING)
        data = self.config.data
        left_out = {
            f"{name}: {reason}": count
            for name, shards in self.sets.items()
            for reason, count in self.damage.of(str(shards.path)).items()
        }
        if self.damage.share > data.max_bad:
            raise UserError(
                f"data.max_bad={data.max_bad}: {self.damage}; `liquid data verify` names them all: fix the shards, or "
                "allow a larger share"
            )
        return left_out

    def evaluate(self, *, at_end: bool = False) -> None:
        """Evaluate when it is due, as it is at the last step. at_end: at this step, unless that was done."""
        every, step = self.config.evals.every, self.progress.step
        if self.evaluation is None or (step % every == 0 if at_end else step % every and not self.done):
            return
        self.check_weights()
        self.timer.enter("evaluation")
        started = time.perf_counter()
        found = self.evaluation.measure(self.root, step, last=at_end or self.done)
        if self.tracker:
            self.tracker.write_evaluation({"step": step, **found})
            self._report(f"step {step}: {headline(found)}, in {time.perf_counter() - started:.1f} s")
            record_score(self.config, step, found)

    def save_when_due(self) -> None:
        """Save at the last step, and every checkpoint.every steps: then the next steps are made while it is written.

        While steps are being left out, a save waits for the next one that is not: what cannot be trained any more must
        not take the place of good checkpoints.
        """
        if self.saver.ended():
            self._settle()
        self._save_waits |= self.progress.step % self.config.checkpoint.every == 0
        if self.done:
            self.save()
        elif self._save_waits and not self._skipped_in_a_row:
            self._save_waits = False
            self.timer.enter("checkpoint")
            started = time.perf_counter()
            self._settle()
            self._start_save()
            self._stalled = time.perf_counter() - started

    def save(self) -> None:
        """Save a checkpoint of this step, unless there is one, and wait for it. SaveFailed on all ranks when it cannot
        be written."""
        self.timer.enter("checkpoint")
        self._settle()
        if self.saver.saved_step != self.progress.step:
            self._start_save()
            self.saver.settle()

    def _start_save(self) -> None:
        self.check_weights()
        self.saver.start(
            snapshot(
                self.root,
                self.optimizer,
                self.progress,
                self.config,
                self.card,
                self.vocabulary,
                self.world,
                copied=self.config.checkpoint.async_save,
            )
        )

    def _settle(self) -> None:
        """Wait for the save that is being written, if any, and log how it ended. After a failure training goes on: the
        next save may find room again."""
        try:
            written = self.saver.settle()
        except SaveFailed as error:
            every = self.config.checkpoint.every
            again = min(max(-(-self.progress.step // every), self.saver.step // every + 1) * every, self.steps)
            self._report(f"{error}. Training goes on; the next checkpoint is tried at step {again}.", logging.WARNING)
            return
        if written is not None:
            self._report(
                f"checkpoint of step {written[0]}: training stood still for {self._stalled:.2f} s, written in "
                f"{written[1]:.1f} s"
            )

    def report_spike(self, loss: float) -> None:
        """Log that the loss of the current step is a spike, and what is done about it. UserError where training has
        gone back as often as it may."""
        if self.config.train.spike.action == "rewind":
            self._settle()  # the checkpoint that is being written is the one to go back to
        self._report(spike_report(self.config, self.progress, loss, self.saver.saved_step))

    def recover(self, batch: RankBatch) -> Rewind | None:
        """Leave out the data of a spike, and all data since the newest checkpoint. Returns where to go back to; None
        where the model is that of the newest checkpoint, so that training just goes on with the next data."""
        self.progress.streams.update(batch.states)
        if self.progress.step != self.saver.saved_step:
            return go_back(self.progress, batch.step, self.resumed_from, self.dir)
        self.progress.guard.left_out += 1
        return None

    def check_skipped(self) -> None:
        """UserError when too many steps in a row were left out."""
        check_skipped(self.config, self._skipped_in_a_row)

    def stop(self, why: str | None = None) -> None:
        """Save, because this rank or another has been told to stop, or for the reason given."""
        self.save()
        reason = f" ({why})" if why else ""
        self._report(f"stopped at step {self.progress.step}{reason}; the same command resumes")

    def end_early(self) -> None:
        """Every source is used up before the last planned step: do what the last step does, unless this step did."""
        step = self.progress.step
        if self._metrics:
            if self.tracker and step % self.config.tracker.every:
                self.tracker.write(self._metrics | self.timer.take())
            self.evaluate(at_end=True)
        self.save()
        self._report(
            f"every source has been read data.sources.*.max_epochs times: training ends at step {step} of {self.steps}"
        )

    def finish(self) -> None:
        """Log how the time was spent, once the last step is made."""
        self.timer.enter("end")
        self._report(self.profile.end(self.progress.step, over=True))
        self._report(f"time of {self.timer.steps_done} steps: {self.timer.describe()}")

    def close(self) -> None:
        """Release the run folder and the model's memory; the Trainer cannot be used any more."""
        self._end_first_step()
        self.saver.close()
        if self.tracker:
            self.tracker.close()
        if self.lock:
            self.lock.release()
        del self.root, self.optimizer, self.rates  # before the process group goes (parallelize.process_group)
