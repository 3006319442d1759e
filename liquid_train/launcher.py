"""`liquid train`: one process here, or several ranks through torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from liquid_train.config.schema import TrainJob
from liquid_train.distributed.settings import degrees
from liquid_train.distributed.signals import STOP_FILE
from liquid_train.errors import UserError


def processes(config: TrainJob) -> int:
    """How many ranks to start here: launch.nproc, or one a GPU, else launch.cpu_nproc."""
    if config.launch.nproc != "auto":
        return int(config.launch.nproc)
    import torch

    return torch.cuda.device_count() or config.launch.cpu_nproc


def launch(config: TrainJob, overrides: list[str]) -> int:
    """Start training: in this process, or through torchrun when several ranks are asked for."""
    from liquid_train.checkpoint.resume import check_inputs, is_complete

    check_inputs(config)
    if is_complete(config):
        print(f"{config.run.dir}: trained to the end already (its last checkpoint is complete); nothing to do")
        return 0
    ranks = processes(config)
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
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "--signals-to-handle=SIGINT,SIGHUP,SIGQUIT",
    ]
    return supervise([*torchrun, "-m", "liquid_train.train", *overrides])


def supervise(command: list[str]) -> int:
    """Run torchrun, have the ranks stop on SIGTERM or SIGUSR1, and keep torchrun's own trace from the terminal: a rank
    says what was wrong.

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
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, errors="replace", env=env, preexec_fn=ignore_stops
        ) as process:

            def on_stop(*_: Any) -> None:
                if stop.exists():
                    process.send_signal(signal.SIGINT)
                stop.touch()

            for number in stops:
                signal.signal(number, on_stop)
            signal.signal(signal.SIGINT, lambda *_: process.send_signal(signal.SIGINT))
            assert process.stderr is not None
            _pass_on(process.stderr)
    if process.returncode:
        print("liquid train: a rank ended with an error (its message is above)", file=sys.stderr)
        return 2
    return 0


def _pass_on(lines: IO[str]) -> None:
    """Print the ranks' lines, without torchrun's: its own begin with a level and a date, or follow its traceback.

    A rank may still have something to say after torchrun has noticed that another one ended.
    """
    launcher = False
    for line in lines:
        launcher = launcher or bool(re.match(r"[EW]\d{4} .*torch/distributed/(elastic|run)", line))
        if line.startswith("liquid train: ") or (not launcher and not re.match(r"[EWI]\d{4} ", line)):
            sys.stderr.write(line)
            sys.stderr.flush()
