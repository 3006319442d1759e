"""Commands and ranks in processes of their own that do not import torch and transformers again.

A process of the standard library (multiprocessing's "forkserver") imports the program once for each worker of pytest;
every command or rank is forked from it. That takes milliseconds, where a new interpreter takes about five CPU seconds
until the first line of a job runs. What it runs is the entry point itself (`liquid_train.cli.main`,
`liquid_train.train.main`) in a session of its own, with its own working folder, environment, stdout and stderr.

Not here, but through `subprocess`: tests about the process (signals, kill -9, what is imported, torchrun's part, the
end of the interpreter, which a forked child leaves out).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.multiprocessing

ROOT = Path(__file__).parents[1]
TIMEOUT = 280.0  # seconds; pytest's own is 300
os.environ.setdefault("PYTHONPATH", str(ROOT))  # the forkserver imports before it is told our sys.path
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["liquid_train.train", "liquid_train.generate.session", "transformers.models.qwen2.modeling_qwen2", __name__]
)


def liquid(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`liquid ARGUMENTS`: exit status, stdout and stderr."""
    return run_together([(_liquid, (list(arguments),), env or {})], cwd)[0]


def train_ranks(overrides: Sequence[str], ranks: int, env: dict[str, str] | None = None) -> None:
    """What `torchrun --nproc-per-node=RANKS -m liquid_train.train OVERRIDES` starts. All of them must succeed."""
    run_ranks(_train, (list(overrides),), ranks, env)


def run_ranks(target: Callable[..., Any], args: tuple[Any, ...], ranks: int, env: dict[str, str] | None = None) -> None:
    """`target(*args)` on each of `ranks` ranks, with the environment that torchrun gives them. All must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **(env or {}),
    }
    jobs = [(target, args, {**common, "RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(ranks)]
    for rank, done in enumerate(run_together(jobs)):
        assert done.returncode == 0, f"rank {rank} of {ranks}, exit status {done.returncode}: {done.stderr[-4000:]}"


def spawn(target: Callable[..., Any], args: tuple[Any, ...], nprocs: int) -> None:
    """torch.multiprocessing.spawn: `target(number, *args)` in `nprocs` processes, forked as above. All must succeed."""
    torch.multiprocessing.start_processes(target, args, nprocs, start_method="forkserver")


def run_together(
    jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...], dict[str, str]]], cwd: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run every (target, args, environment) in a forked process, until all have ended; one that fails ends the others.

    The exit status is 0 where the target returns None, else what it returns, or 1 after its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        processes, files = [], []
        for number, (target, args, more) in enumerate(jobs):
            out, err = Path(folder, f"{number}.out"), Path(folder, f"{number}.err")
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
            arguments = (target, args, environment, str(cwd or Path.cwd()), str(out), str(err))
            process = FORKS.Process(target=_child, args=arguments)
            process.start()
            processes.append(process)
            files.append((out, err))
        try:
            _wait(processes)
        finally:
            _end(processes)
        return [
            subprocess.CompletedProcess([], process.exitcode or 0, *(_text(path) for path in paths))
            for process, paths in zip(processes, files, strict=True)
        ]


def _wait(processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + TIMEOUT
    failed_at = None
    while any(process.exitcode is None for process in processes):
        now = time.monotonic()
        if failed_at is None and any(process.exitcode for process in processes):
            failed_at = now
        if failed_at is not None and now > failed_at + 10:
            return  # the others wait for the one that failed
        if now > deadline:
            raise TimeoutError(f"a command has not ended after {TIMEOUT:.0f} seconds")
        multiprocessing.connection.wait([p.sentinel for p in processes if p.exitcode is None], timeout=1)


def _end(processes: list[BaseProcess]) -> None:
    """Whatever still runs, with everything it has started."""
    for process in processes:
        if process.exitcode is None and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # one that had no session of its own yet
        process.join()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _child(
    target: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], cwd: str, out: str, err: str
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    try:
        status = target(*args)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.exit(status)


def _liquid(arguments: list[str]) -> int:
    from liquid_train.cli import main

    sys.argv = ["liquid", *arguments]
    return main(arguments)


def _train(overrides: list[str]) -> int:
    from liquid_train.train import main

    sys.argv = ["liquid_train.train", *overrides]
    return main(overrides)
