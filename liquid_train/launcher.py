"""`liquid train`: one process here, or several ranks through torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from liquid_train.config.schema import TrainJob
from liquid_train.distributed.settings import degrees, processes
from liquid_train.distributed.signals import STOP_FILE
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
        "--signals-to-handle=SIGINT,SIGHUP,SIGQUIT",
        f"--shutdown-timeout={LAST_SECONDS}",
    ]
    return supervise([*torchrun, "-m", "liquid_train.train", *overrides])


def supervise(command: list[str]) -> int:
    """Run torchrun and have the ranks stop on SIGTERM or SIGUSR1. Returns its exit status (liquid_train/torchrun.py).

    torchrun itself ignores these signals: it would give its ranks 30 seconds, and none on a second signal, which a
    process group or Slurm delivers to it next to ours. The ranks look for a file instead; a second SIGTERM ends them as
    Ctrl-C does.
    """
    stops = (signal.SIGTERM, signal.SIGUSR1)

    def ignore_stops() -> None:
        for number in stops:
            signal.signal(number, signal.SIG_IGN)

    with tempfile.TemporaryDirectory(prefix="liquid-") as folder:
        stop = Path(folder) / "stop"
        env = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", STOP_FILE: str(stop)}
        with subprocess.Popen(command, env=env, preexec_fn=ignore_stops) as process:

            def on_stop(*_: Any) -> None:
                if stop.exists():
                    process.send_signal(signal.SIGINT)
                stop.touch()

            for number in stops:
                signal.signal(number, on_stop)
            signal.signal(signal.SIGINT, lambda *_: process.send_signal(signal.SIGINT))
            return process.wait()
