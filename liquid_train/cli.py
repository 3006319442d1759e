"""`liquid <job> [overrides]` and `liquid <tool> ...`: the command line. Heavy imports happen only when there is work."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from liquid_train.config import JOBS, TrainJob, all_keys, load

JOB_MODULES = {"tokenize": "data_prep.tokenize", "eval": "evals.run", "generate": "liquid_train.generate.job"}
FREE_TEXT = ("prompt", "image", "checkpoint", "prompts", "questions", "output", "run.dir", "run.name", "vq.config", "vq.checkpoint",
             "tokenize.input", "tokenize.images", "tokenize.image_key", "tokenize.text_key", "tokenize.output")  # fmt: skip

USAGE = """usage: liquid <job> [key=value ...]        jobs: tokenize, train, eval, generate   (liquid <job> --help lists the keys)
       liquid run list [FOLDER]            all runs below FOLDER (default: runs)
       liquid run status RUN               how far a run is
       liquid run report RUN               write RUN/report.html and print the summary
       liquid checkpoint list RUN          complete checkpoints of a run
       liquid checkpoint verify PATH       compare a checkpoint with its recorded sizes and hashes

first steps: make quickstart, or
       liquid train experiment=quickstart
       liquid generate checkpoint=runs/quickstart prompt="a blue rectangle" output=pictures"""


def quote(override: str) -> str:
    """Quote free text for Hydra's grammar, so that prompt=a dog's bowl, red works as it stands.

    `data.sources.X.k=v` becomes an addition, since a source may be new.
    """
    key, equals, value = override.partition("=")
    if not equals:
        return override
    if key in FREE_TEXT and not re.fullmatch(r"null|[\w./:-]*", value):
        # Hydra's grammar: a backslash escapes only a quote, or the backslashes that stand right before one
        escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
        return f"{key}='{escaped}'"
    if re.match(r"(data\.(sources|heldout)\.\w+|loss\.weight|backbone\.architecture)\.", key):
        return f"++{override}"
    return override


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line on stderr for a user's mistake."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    name, rest = args[0], args[1:]
    try:
        if name in JOBS:
            return run_job(name, rest)
        if name in TOOLS:
            return TOOLS[name](rest)
        raise ValueError(f"unknown command; one of {', '.join([*JOBS, *TOOLS])} (liquid --help)")
    except ValueError as error:
        print(f"liquid {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_job(name: str, rest: list[str]) -> int:
    if rest and rest[0] in ("-h", "--help"):
        print(f"usage: liquid {name} [key=value ...]\n\nkeys (conf/{name}.yaml and its groups explain and set them):")
        print("\n".join(f"  {key}" for key in all_keys(JOBS[name])))
        return 0
    overrides = [quote(o) for o in rest]
    config = load(name, overrides)
    if name == "train":
        return launch(config, overrides)
    import_module(JOB_MODULES[name]).run(config)
    return 0


def processes(config: TrainJob) -> int:
    """How many ranks to start here: launch.nproc, or one a GPU, else launch.cpu_nproc."""
    if config.launch.nproc != "auto":
        return int(config.launch.nproc)
    import torch

    return torch.cuda.device_count() or config.launch.cpu_nproc


def launch(config: TrainJob, overrides: list[str]) -> int:
    """Start training: in this process, or through torchrun when several ranks are asked for."""
    from liquid_train.resume import check_inputs, is_complete

    check_inputs(config)
    if is_complete(config):
        print(f"{config.run.dir}: trained to the end already (its last checkpoint is complete); nothing to do")
        return 0
    ranks = processes(config)
    streams = config.data.streams or config.data.global_batch
    if ranks > streams:
        raise ValueError(f"launch.nproc={ranks}: more data-parallel ranks than data.streams={streams}; start fewer, or raise data.streams or data.global_batch")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if ranks == 1:
        from liquid_train.train import main as train

        return train(overrides)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "liquid_train.train", *overrides]
    return supervise(command)


def supervise(command: list[str]) -> int:
    """Run torchrun, pass signals on to it, and keep its own trace from the terminal: a rank says what was wrong itself.

    torchrun's log level and the ranks' output share stderr; its lines begin with a level and date, or follow its traceback.
    """
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}) as process:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda n, _: process.send_signal(signal.SIGTERM if n == signal.SIGUSR1 else n))
        assert process.stderr is not None
        launcher = False
        for line in process.stderr:
            launcher = launcher or bool(re.match(r"[EW]\d{4} .*torch/distributed/(elastic|run)", line))
            if not launcher and not re.match(r"[EWI]\d{4} ", line):
                sys.stderr.write(line)
                sys.stderr.flush()
    if process.returncode:
        print("liquid train: a rank ended with an error (its message is above)", file=sys.stderr)
        return 2
    return 0


def run_tool(rest: list[str]) -> int:
    from liquid_train import report

    parser = argparse.ArgumentParser(prog="liquid run", description="Look at runs.")
    parser.add_argument("action", choices=("list", "status", "report"))
    parser.add_argument("path", nargs="?", default=None, help="a run's folder (list: a folder of runs)")
    args = parser.parse_args(rest)
    if args.action == "list":
        report.list_runs(Path(args.path or "runs"))
        return 0
    if args.path is None:
        raise ValueError(f"{args.action} needs the folder of a run")
    folder = Path(args.path)
    if args.action == "status":
        report.status(folder)
        return 0
    if not report.report_is_current(folder):
        report.write_report(folder)
    report.print_summary(folder)
    return 0


def checkpoint_tool(rest: list[str]) -> int:
    from liquid_train import checkpoint

    parser = argparse.ArgumentParser(prog="liquid checkpoint", description="Look at checkpoints.")
    parser.add_argument("action", choices=("list", "verify"))
    parser.add_argument("path", help="list: a run's folder; verify: a checkpoint's")
    args = parser.parse_args(rest)
    folder = Path(args.path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if args.action == "list":
        for found in checkpoint.committed(folder):
            size = sum(f["size"] for f in checkpoint.read_commit(found)["files"].values())
            print(f"{found}  {size / 2**20:,.1f} MiB")
        return 0
    wrong = checkpoint.problems(folder, hashes=True)
    print("\n".join(wrong) if wrong else f"{folder}: complete, every file as recorded")
    return 1 if wrong else 0


TOOLS: dict[str, Callable[[list[str]], Any]] = {"run": run_tool, "checkpoint": checkpoint_tool}

if __name__ == "__main__":
    sys.exit(main())
