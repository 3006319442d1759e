"""`liquid JOB [key=value ...]` and `liquid TOOL ...`: dispatch. Heavy imports happen only when there is work."""

from __future__ import annotations

import gc
import logging
import os
import sys
from importlib import import_module
from typing import Any

from liquid_train import __version__, logs
from liquid_train.distributed.rank_environment import forget_leftover_ranks
from liquid_train.errors import UserError
from liquid_train.import_path import put_working_folder_last
from liquid_train.jobs import JOBS

log = logging.getLogger(__name__)

TOOLS = {
    "run": "liquid_train.report.command",
    "checkpoint": "liquid_train.checkpoint.command",
    "data": "data_prep.tools.command",
}

# New objects between two collections of garbage, 700 by default: while torch and transformers are imported nothing is
# garbage, and looking for it takes a fifth of the CPU seconds (6.1 instead of 4.8 until `liquid train` begins to work).
IMPORTING = 100_000

USAGE = """usage: liquid <job> [key=value ...]        jobs: tokenize, train, eval, generate, serve, plan
       liquid <job> --help [KEY]           its keys: type, default, meaning;  --cfg: the config it would run with
       liquid run list [FOLDER]            all runs below FOLDER (default: runs)
       liquid run status RUN               how far a run is
       liquid run report RUN               write RUN/report.html and print the summary
       liquid run compare A B [--strict]   their evaluations side by side, and what was not measured alike
       liquid run replay RUN --step N      the documents of one step's batch, with the loss and gradient of each
       liquid checkpoint list RUN          complete checkpoints of a run
       liquid checkpoint verify PATH       compare a checkpoint, or a run's newest, with its recorded sizes and hashes
       liquid checkpoint export PATH OUTPUT  the model of a checkpoint or run, for plain transformers
       liquid checkpoint import PATH OUTPUT  a published Liquid model, for training to go on from it
       liquid data merge OUTPUT [PART ...] join the parts of a shard set (liquid data TOOL --help lists the flags)
       liquid data verify SET              read a whole set again, and compare some of it with its source
       liquid data describe SET            sizes, captions, grid shapes and codebook usage
       liquid data inspect SET [KEY]       one sample; --decode FILE.png: its image
       liquid data inspect KEY=VALUE ...   the first packed sequences of a training config
       liquid data index SET               write the index.json of a folder of tars

first steps: make quickstart, or
       liquid train experiment=quickstart
       liquid generate checkpoint=runs/quickstart prompt="a blue rectangle" output=images
       liquid serve checkpoint=runs/quickstart      a page to try it, and an HTTP API
       liquid eval watch=runs/mine         next to a training: every checkpoint is evaluated as it comes
       liquid eval checkpoint=runs/mine evals=paper             the paper's benchmarks on one page, next to its numbers
       liquid plan backbone=qwen2.5-32b parallel.shard=512      memory of one rank, before there is a cluster

other: liquid --version, liquid --completion bash|zsh|fish   (eval "$(liquid --completion bash)")"""


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line on stderr for a user's mistake."""
    if argv is None:  # a process of our own
        gc.set_threshold(IMPORTING)
        put_working_folder_last()
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"liquid {__version__}")
        return 0
    name, rest = args[0], args[1:]
    # tokenize alone takes its part of the work from them, whoever has set them
    leftover = None if name == "tokenize" else forget_leftover_ranks(launched=False)
    try:
        logs.set_up()
        if leftover:
            log.warning(leftover)
        if name in ("--completion", "--complete"):
            return int(import_module("liquid_train.config.completion").main(name, rest))
        if name in JOBS:
            return int(import_module("liquid_train.config.command").run_job(name, rest))
        if name in TOOLS:
            tool: Any = import_module(TOOLS[name])
            return int(tool.main(rest))
        raise UserError(f"unknown command; one of {', '.join([*JOBS, *TOOLS])} (liquid --help)")
    except UserError as error:
        print(f"liquid {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has enough, as in `liquid train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
