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
from pathlib import Path
from typing import Any

import torch.multiprocessing

ROOT = Path(__file__).parents[1]
# target, arguments, additions to the environment
Job = tuple[Callable[..., Any], tuple[Any, ...], dict[str, str]]
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
    with Together([(_liquid, (list(arguments),), env or {})], cwd) as started:
        return started.wait()[0]


def run_ranks(target: Callable[..., Any], args: tuple[Any, ...], ranks: int, env: dict[str, str] | None = None) -> None:
    """`target(*args)` on each of `ranks` ranks, with the environment that torchrun gives them. All must succeed."""
    with Together(rank_jobs(target, args, ranks, env)) as started:
        ended = started.wait()
    failed = [f"rank {n}, exit status {d.returncode}: {d.stderr[-4000:]}" for n, d in enumerate(ended) if d.returncode]
    assert not failed, "\n".join(failed)


def start_ranks(overrides: Sequence[str], ranks: int, env: dict[str, str] | None = None) -> Together:
    """What `torchrun --nproc-per-node=RANKS -m liquid_train.train OVERRIDES` starts."""
    return Together(rank_jobs(_train, (list(overrides),), ranks, env))


def rank_jobs(target: Callable[..., Any], args: tuple[Any, ...], ranks: int, env: dict[str, str] | None) -> list[Job]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(ranks)
    group = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [(target, args, {**(env or {}), **group, "RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(ranks)]


def spawn(target: Callable[..., Any], args: tuple[Any, ...], nprocs: int) -> None:
    """torch.multiprocessing.spawn: `target(number, *args)` in `nprocs` processes, forked as above. All must succeed."""
    torch.multiprocessing.start_processes(target, args, nprocs, start_method="forkserver")


class Together:
    """Forked processes that run until all have ended, or one has failed; as a context, they are gone at its end.

    The exit status of one is 0 where its target returns None, else what it returns, or 1 after its traceback.
    """

    def __init__(self, jobs: Sequence[Job], cwd: Path | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="forked-")
        self.files = [tuple(Path(self.folder.name, f"{n}.{end}") for end in ("out", "err")) for n in range(len(jobs))]
        self.processes = []
        for (target, args, more), (out, err) in zip(jobs, self.files, strict=True):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
            arguments = (target, args, environment, str(cwd or Path.cwd()), str(out), str(err))
            self.processes.append(FORKS.Process(target=_child, args=arguments))
            self.processes[-1].start()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.folder.cleanup()

    def poll(self) -> int | None:
        """The exit status of the first that has ended."""
        return next((process.exitcode for process in self.processes if process.exitcode is not None), None)

    def kill(self) -> None:
        """kill -9 of whatever still runs, with everything it has started; waits until it is gone."""
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()  # one that had no session of its own yet
        for process in self.processes:
            process.join()

    def wait(self) -> list[subprocess.CompletedProcess[str]]:
        """Until all have ended, or ten seconds after one has failed: the others wait for it."""
        deadline = time.monotonic() + TIMEOUT
        while running := [process.sentinel for process in self.processes if process.exitcode is None]:
            if any(process.exitcode for process in self.processes):
                deadline = min(deadline, time.monotonic() + 10)
            if time.monotonic() > deadline:
                break
            multiprocessing.connection.wait(running, timeout=1)
        hung = all(not process.exitcode for process in self.processes) and bool(running)
        self.kill()
        if hung:
            raise TimeoutError(f"not ended after {TIMEOUT:.0f} seconds: {[_text(err) for _, err in self.files]}")
        return [
            subprocess.CompletedProcess([], process.exitcode or 0, _text(out), _text(err))
            for process, (out, err) in zip(self.processes, self.files, strict=True)
        ]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _child(
    target: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], cwd: str, out: str, err: str
) -> None:
    os.setsid()
    # as in a process that a user starts: its loaders are forked from it, else each would import the program again
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]  # a test's own modules
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
