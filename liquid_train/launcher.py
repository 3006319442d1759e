"""`liquid train`: one process here, or several ranks through torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from liquid_train.config.schema import TrainJob
from liquid_train.distributed.exit_status import MAY_HELP
from liquid_train.distributed.settings import LaunchConfig, all_processes, degrees, processes
from liquid_train.distributed.signals import IMPATIENT, STOP_FILE, STOPS, ignore_stops, signal_when_parent_ends
from liquid_train.errors import UserError
from liquid_train.files import check_folder

LAST_SECONDS = 10  # that ranks get to end by themselves once one has failed


def launch(config: TrainJob, overrides: list[str]) -> int:
    """Start training: in this process, or through torchrun when several ranks are asked for."""
    from liquid_train.checkpoint.resume import check_inputs, is_complete

    check_inputs(config)
    if is_complete(config):
        print(f"{config.run.dir}: trained to the end already (its last checkpoint is complete); nothing to do")
        return 0
    check_folder(Path(config.run.dir), f"run.dir={config.run.dir}")
    own, ranks = processes(config.launch), all_processes(config.launch)
    streams = config.data.streams or config.data.global_batch
    replicate, shard, _ = degrees(config.parallel, ranks)
    if replicate * shard > streams:
        machines = f" x launch.nodes={config.launch.nodes}" if config.launch.nodes > 1 else ""
        raise UserError(
            f"launch.nproc={own}{machines}: more data-parallel ranks than data.streams={streams}; start fewer, or "
            "raise data.streams or data.global_batch"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if ranks == 1 and not config.launch.restarts:
        from liquid_train.train import main as train

        return train(overrides)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    trains = ["-m", "liquid_train.train", *overrides]
    torchrun = [sys.executable, "-m", "liquid_train.torchrun", *torchrun_options(config.launch, own)]
    return supervise([*torchrun, *trains], config.launch.restarts)


def torchrun_options(launch: LaunchConfig, processes: int) -> list[str]:
    """Of the torchrun that is started on each machine."""
    meeting = ["--standalone"]
    if launch.nodes > 1:
        meeting = [f"--nnodes={launch.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}"]
    return [
        *meeting,
        f"--nproc-per-node={processes}",
        "--max-restarts=0",  # torchrun's own: its ranks then look for each other at the addresses of the dead (gloo)
        "--signals-to-handle=SIGHUP,SIGQUIT",
        f"--shutdown-timeout={LAST_SECONDS}",
    ]


def supervise(command: list[str], restarts: int = 0) -> int:
    """Run torchrun, again up to `restarts` times after ranks have died, and have the ranks stop on SIGTERM, SIGUSR1 or
    Ctrl-C. Returns its exit status (liquid_train/torchrun.py); 130 after a second Ctrl-C, which ends the ranks at once.

    torchrun itself ignores these signals: it would give its ranks 30 seconds, and none on a second signal, which a
    process group or Slurm delivers to it next to ours. The ranks look for a file instead. Once this process is gone,
    killed for example, torchrun is killed too, and the ranks save and leave (train.py).
    """
    # machines that start again must not meet those of the time before
    job = os.environ.get("SLURM_JOB_ID", "liquid")
    told: list[float] = []  # when to stop
    status = _run(command, f"{job}-0", told)
    for attempt in range(1, restarts + 1):
        if not status & MAY_HELP or told:
            break
        print(f"liquid train: all ranks start again, {attempt} of {restarts} times", file=sys.stderr, flush=True)
        status = _run(command, f"{job}-{attempt}", told)
    return status & ~MAY_HELP


def _run(command: list[str], name: str, told: list[float]) -> int:
    """One torchrun; returns its exit status. name: under which its machines meet. told: gets the time of every signal
    to stop."""
    launcher = os.getpid()

    def follow() -> None:
        ignore_stops()
        signal_when_parent_ends(signal.SIGKILL, launcher)

    with tempfile.TemporaryDirectory(prefix="liquid-") as folder:
        stop = Path(folder) / "stop"  # also touched by a rank that is ended because another has died
        env = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", STOP_FILE: str(stop), "PET_RDZV_ID": name}
        with subprocess.Popen(command, env=env, preexec_fn=follow) as process:
            at_once = False

            def on_stop(number: int, _: Any) -> None:
                nonlocal at_once
                told.append(time.monotonic())
                if number == signal.SIGINT and told[-1] - told[0] > IMPATIENT:
                    at_once = True
                    process.send_signal(signal.SIGHUP)
                stop.touch()

            for number in STOPS:
                signal.signal(number, on_stop)
            if told:  # between two starts
                stop.touch()
            status = process.wait()
            return 128 + signal.SIGINT if at_once else status
