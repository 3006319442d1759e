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
from liquid_train.distributed.settings import degrees, processes
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
    ranks = processes(config.launch)
    streams = config.data.streams or config.data.global_batch
    replicate, shard, _ = degrees(config.parallel, ranks)
    if replicate * shard > streams:
        raise UserError(
            f"launch.nproc={ranks}: more data-parallel ranks than data.streams={streams}; start fewer, or raise "
            "data.streams or data.global_batch"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if ranks == 1:
        from liquid_train.train import main as train

        return train(overrides)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torchrun = [
        sys.executable,
        "-m",
        "liquid_train.torchrun",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "--signals-to-handle=SIGHUP,SIGQUIT",
        f"--shutdown-timeout={LAST_SECONDS}",
    ]
    return supervise([*torchrun, "-m", "liquid_train.train", *overrides])


def supervise(command: list[str]) -> int:
    """Run torchrun and have the ranks stop on SIGTERM, SIGUSR1 or Ctrl-C. Returns its exit status
    (liquid_train/torchrun.py); 130 after a second Ctrl-C, which ends the ranks at once.

    torchrun itself ignores these signals: it would give its ranks 30 seconds, and none on a second signal, which a
    process group or Slurm delivers to it next to ours. The ranks look for a file instead. Once this process is gone,
    killed for example, torchrun is killed too, and the ranks save and leave (train.py).
    """
    launcher, begun = os.getpid(), 0.0

    def follow() -> None:
        ignore_stops()
        signal_when_parent_ends(signal.SIGKILL, launcher)

    with tempfile.TemporaryDirectory(prefix="liquid-") as folder:
        stop = Path(folder) / "stop"
        env = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", STOP_FILE: str(stop)}
        with subprocess.Popen(command, env=env, preexec_fn=follow) as process:
            at_once = False

            def on_stop(number: int, _: Any) -> None:
                nonlocal begun, at_once
                if not begun:
                    begun = time.monotonic()
                elif number == signal.SIGINT and time.monotonic() - begun > IMPATIENT:
                    at_once = True
                    process.send_signal(signal.SIGHUP)
                stop.touch()

            for number in STOPS:
                signal.signal(number, on_stop)
            status = process.wait()
            return 128 + signal.SIGINT if at_once else status
