"""The training run, readable from top to bottom: `torchrun -m liquid_train.train [overrides]`, or `liquid train
[overrides]`."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from liquid_train.distributed.rank_environment import forget_leftover_ranks
from liquid_train.distributed.signals import Interrupted, StopSignal, signal_when_parent_ends
from liquid_train.import_path import put_working_folder_last

if __name__ == "__main__":  # a rank that torchrun started
    put_working_folder_last()
    gc.set_threshold(100_000)  # while torch and transformers are imported, as in cli.py; `main` sets it back
    if "TORCHELASTIC_RUN_ID" in os.environ:  # without its launcher a rank would train on and hold the run's lock
        signal_when_parent_ends(signal.SIGTERM)  # it saves and leaves then

import torch
from torch.distributed.checkpoint.api import CheckpointException

from liquid_train import logs
from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import LoaderError, one_clear_error
from liquid_train.distributed.exit_status import LOST_PEER
from liquid_train.distributed.hang_detection import Watchdog, collective_timeout, lost_peer, prepare_flight_recorder
from liquid_train.distributed.parallelize import World, process_group
from liquid_train.distributed.rank_errors import report_bug, report_lost_peer, report_mistake
from liquid_train.distributed.step_timer import StepTimer
from liquid_train.errors import UserError
from liquid_train.files import check_folder
from liquid_train.training.deadline import Deadline
from liquid_train.training.spikes import Rewind
from liquid_train.training.trainer import Trainer

log = logging.getLogger(__name__)

LESS = (  # of memory
    "lower train.micro_batch or data.seq_len, or set parallel.activation_checkpoint=full; liquid plan shows what the "
    "model itself takes"
)


def train(config: TrainJob, world: World, timer: StepTimer, stop: StopSignal) -> None:
    """Train to the last planned step. Resumes by itself; saves and leaves once told to stop. A collective of all
    ranks."""
    torch.use_deterministic_algorithms(config.train.deterministic)
    timer.cuda = world.device.type == "cuda"
    deadline = Deadline(config.train.time_limit)
    rewind = train_from(config, world, timer, stop, deadline)
    while rewind:
        gc.collect()  # frees the old model before the new one is built
        rewind = train_from(config, world, timer, stop, deadline, rewind)


def train_from(
    config: TrainJob,
    world: World,
    timer: StepTimer,
    stop: StopSignal,
    deadline: Deadline,
    rewind: Rewind | None = None,
) -> Rewind | None:
    """Train from a checkpoint or from the start to the end of the run, or up to a spike of the loss that sends training
    back. Returns where to, None at the end."""
    timer.enter("start")
    trainer = Trainer(config, world, timer, rewind)
    try:
        trainer.open_log()
        try:
            if back := train_steps(trainer, stop, deadline):
                return back
        except Interrupted:
            trainer.stop()
        if trainer.out_of_data:
            trainer.end_early()
        trainer.finish()
    finally:
        trainer.close()
    return None


def train_steps(trainer: Trainer, stop: StopSignal, deadline: Deadline) -> Rewind | None:
    """The steps of `train_from`. Raises Interrupted, on all ranks, where one of them is told to stop while it waits for
    data."""
    begun = time.monotonic()
    for batch in trainer.batches(stop):
        late = deadline.near
        result = trainer.step(batch, stop.received or late)
        if result.spike:
            trainer.report_spike(result.loss)
        if result.rewinds:
            if back := trainer.recover(batch):
                return back
            trainer.check_skipped()
            continue
        trainer.log(batch, result)
        if not result.finite:
            trainer.check_weights()
        trainer.evaluate()
        trainer.save_when_due()
        trainer.check_skipped()
        if result.stop:
            trainer.stop("its time is over" if late else None)
        if result.stop or trainer.done:
            break
        deadline.step_took(time.monotonic() - begun)
        begun = time.monotonic()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host, had no room for a tensor: of the host torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate" in str(
        error
    )


def main(overrides: list[str]) -> int:
    """Run one rank. Exit status: 0; 2 after one line on stderr for a user's mistake; 1 after a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # collections that walk through torch's and transformers' objects cost half a second while the data is opened
    gc.freeze()
    gc.set_threshold(700, 10, 10)  # Python's own, which cli.py raises for the imports
    if {"-h", "--help", "--cfg"} & set(overrides):
        return int(import_module("liquid_train.config.command").run_job("train", overrides))
    leftover = forget_leftover_ranks(launched=True)
    timer, stop = StepTimer(), StopSignal()
    try:
        logs.set_up()
        if leftover:
            log.warning(leftover)
        config = load("train", overrides)
        logs.set_up(config.log.level)
        if config.train.deterministic:  # cuBLAS reads it when its first handle is made
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        run_dir = Path(config.run.dir)
        check_folder(run_dir, f"run.dir={run_dir}")
        hangs, timeout = run_dir / "hangs", config.train.hang_timeout
        prepare_flight_recorder(hangs)
        with (
            Watchdog(timer, timeout, hangs),
            process_group(config.parallel.tensor, collective_timeout(timeout)) as world,
            one_clear_error(),
        ):
            train(config, world, timer, stop)
    except LoaderError as error:  # one rank's own: the others do not know of it
        report_mistake(str(error), own=True)
        return 2
    except UserError as error:
        report_mistake(str(error))
        return 2
    except (Exception, CheckpointException) as error:
        if lost := lost_peer(error):
            report_lost_peer(f"{lost} ({timer})")
            return LOST_PEER if "TORCHELASTIC_RUN_ID" in os.environ else 2
        if is_out_of_memory(error):
            asked = re.search(r"tried to allocate [\d.]+ \w+", str(error), re.IGNORECASE)
            report_mistake(
                f"out of memory ({', '.join([str(timer), *([asked[0]] if asked else [])])}); {LESS}", own=True
            )
            return 2
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        report_bug(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
