"""What one rank holds while it trains, made in the one order that works: data, vocabulary, model on meta, shards,
weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.checkpoint import state as train_state
from liquid_train.checkpoint.async_writer import Saver
from liquid_train.checkpoint.resume import as_lines, changes_since, continued, find_checkpoint, planned_steps
from liquid_train.config.compose import package_path
from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import BatchLoader, open_sources
from liquid_train.data.tasks import task_names
from liquid_train.distributed.parallelize import World, compute_dtype, parallelize
from liquid_train.distributed.step_timer import StepTimer
from liquid_train.image_tokenizer.preprocess import nearest_size
from liquid_train.image_tokenizer.taming import ImageTokenizer
from liquid_train.model import backbone
from liquid_train.model.attention import choose_kernel, implementation
from liquid_train.model.embedding_init import fill_image_rows
from liquid_train.model.loss import LossModule
from liquid_train.optim.adamw import RowRates, build_optimizer
from liquid_train.training.heldout import heldout_set
from liquid_train.training.metrics import Compute
from liquid_train.training.run_vocabulary import make_tokenizer, open_vocabulary
from liquid_train.training.spikes import Rewind
from liquid_train.training.tracker import RunLock
from liquid_train.vocabulary import UNCONDITIONAL, Vocabulary


class Run:
    """Everything one rank holds while it trains, from a checkpoint or from the start; rewind: from where a spike sent
    it back to."""

    def __init__(
        self, config: TrainJob, world: World, timer: StepTimer | None = None, rewind: Rewind | None = None
    ) -> None:
        self.config, self.world, self.dir = config, world, Path(config.run.dir)
        self.timer = timer or StepTimer()
        self.steps = planned_steps(config)
        self.tasks = task_names(config.data)
        self.resumed_from = rewind.checkpoint if rewind else find_checkpoint(config)
        vq_config, vq_weights = package_path(config.vq.config), package_path(config.vq.checkpoint)
        self.image_tokenizer = ImageTokenizer.from_files(vq_config, vq_weights)
        self.sets = open_sources(config.data, self.image_tokenizer.fingerprint, self.image_tokenizer.codebook_size)
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
        self.heldout = (
            heldout_set(
                config.data,
                config.loss,
                config.seed,
                self.vocabulary,
                self.image_tokenizer.fingerprint,
                micro_batch=config.train.micro_batch,
            )
            if config.evals.every
            else None
        )
        left_out = self.progress.guard.left_out
        # how many steps' worth of data a run that leaves some out will need is not known yet
        unknown = config.train.spike.action == "rewind" and self.progress.step < self.steps
        self.loader = BatchLoader(
            config.data,
            config.seed,
            self.sets,
            self.vocabulary,
            rank=world.data_rank,
            world=world.data_size,
            first_step=self.progress.step + left_out,
            steps=sys.maxsize if unknown else self.steps + left_out,
            states=self.progress.streams,
        )
        self.root, self.optimizer = self._model()

    def _progress(self) -> tuple[train_state.Progress, list[str]]:
        """Where the run stands, and lines that say what changed since the checkpoint."""
        shards = {name: s.digest for name, s in self.sets.items()}
        if not self.resumed_from:
            return train_state.Progress(shards=shards), []
        changes = changes_since(self.resumed_from, self.config, shards)
        progress = train_state.read_progress(self.resumed_from)[0]
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
        sizes = list(dict.fromkeys(size for s in self.sets.values() for size in s.multiratio_sizes))
        if sizes:
            width, height = nearest_size(sizes, 1, 1)
            grid = [height // self.image_tokenizer.downsampling, width // self.image_tokenizer.downsampling]
        else:
            grid = next(
                (list(sample["codes"].shape) for s in self.sets.values() for sample in s if "codes" in sample), []
            )
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
            sizes=[list(size) for size in sizes],
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
            fill_image_rows(
                lm, self.vocabulary, settings.image_init, self.image_tokenizer.quantize.embedding.weight, c.seed
            )
        else:
            backbone.fill_random(lm, c.seed)
        return root, optimizer
