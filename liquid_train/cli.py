"""`liquid <job> [overrides]` and `liquid <tool> ...`: the command line. Heavy imports happen only when there is
work."""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from evals.settings import BENCHMARKS
from liquid_train.config.compose import JOBS, all_keys, load
from liquid_train.errors import UserError

JOB_MODULES = {
    "tokenize": "data_prep.tokenize",
    "eval": "evals.run",
    "generate": "liquid_train.generate.job",
    "serve": "liquid_train.serve.job",
    "plan": "liquid_train.scaling.planner",
}
FREE_TEXT = (
    "prompt",
    "null_prompt",
    "image",
    "checkpoint",
    "watch",
    "prompts",
    "questions",
    "output",
    "run.dir",
    "run.name",
    "vq.config",
    "vq.checkpoint",
    "tokenize.input",
    "tokenize.images",
    "tokenize.image_key",
    "tokenize.text_key",
    "tokenize.output",
    "genai_bench",
    "language.include_path",
    "evals.language.include_path",
    "benchmarks.suffix",
    *(
        f"benchmarks.{name}.{key}"
        for name in BENCHMARKS
        for key in ("questions", "annotations", "images", "folder", "predictions")
    ),
    "vqascore.model",
    "clipscore.model",
    "clipscore.prefix",
    "reference.folder",
    "wise.prompts",
    "heldout.run",
    "features.path",
    *(f"{where}vqascore.{key}" for where in ("", "evals.") for key in ("question", "answer", "pattern")),
)

# New objects between two collections of garbage, 700 by default: while torch and transformers are imported nothing is
# garbage, and looking for it takes a fifth of the CPU seconds (6.1 instead of 4.8 until `liquid train` begins to work).
IMPORTING = 100_000

USAGE = """usage: liquid <job> [key=value ...]        jobs: tokenize, train, eval, generate, serve, plan
       liquid <job> --help                 its keys
       liquid run list [FOLDER]            all runs below FOLDER (default: runs)
       liquid run status RUN               how far a run is
       liquid run report RUN               write RUN/report.html and print the summary
       liquid run compare A B [--strict]   their evaluations side by side, and what was not measured alike
       liquid run replay RUN --step N      the documents of one step's batch, with the loss and gradient of each
       liquid checkpoint list RUN          complete checkpoints of a run
       liquid checkpoint verify PATH       compare a checkpoint with its recorded sizes and hashes
       liquid checkpoint export PATH OUTPUT  the model of a checkpoint or run, for plain transformers
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
       liquid plan backbone=qwen2.5-32b parallel.shard=512      memory of one rank, before there is a cluster"""


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
    if re.match(r"(data\.(sources|heldout)\.\w+|loss\.weight|evals\.periods|backbone\.architecture)\.", key):
        return f"++{override}"
    return override


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line on stderr for a user's mistake."""
    if argv is None:  # a process of our own
        gc.set_threshold(IMPORTING)
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
        raise UserError(f"unknown command; one of {', '.join([*JOBS, *TOOLS])} (liquid --help)")
    except UserError as error:
        print(f"liquid {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_job(name: str, rest: list[str]) -> int:
    if rest and rest[0] in ("-h", "--help"):
        print(f"usage: liquid {name} [key=value ...]\n\nkeys (conf/{name}.yaml and its groups explain and set them):")
        print("\n".join(f"  {key}" for key in all_keys(JOBS[name])))
        return 0
    if name == "eval":  # evals is a config group of training, which Hydra would take the key for
        rest = [re.sub(r"^evals=", "metrics=", re.sub(r"^evals=(?=paper$)", "sheet=", o)) for o in rest]
    overrides = [quote(o) for o in rest]
    config = load(name, overrides)
    if name == "train":
        return int(import_module("liquid_train.launcher").launch(config, overrides))
    import_module(JOB_MODULES[name]).run(config)
    return 0


def run_tool(rest: list[str]) -> int:
    from liquid_train.report import html as report

    parser = argparse.ArgumentParser(prog="liquid run", description="Look at runs.")
    parser.add_argument("action", choices=("list", "status", "report", "compare", "replay"))
    parser.add_argument("path", nargs="?", default=None, help="a run's folder (list: a folder of runs)")
    parser.add_argument("other", nargs="?", default=None, help="compare: the other run's folder")
    parser.add_argument(
        "--strict", action="store_true", help="compare: exit with 2 when something was not measured alike"
    )
    parser.add_argument("--step", type=int, help="replay: which step's batch to rebuild and take apart")
    parser.add_argument("--output", help="replay: a folder for documents.jsonl and images.png")
    args = parser.parse_args(rest)
    if args.action == "list":
        report.list_runs(Path(args.path or "runs"))
        return 0
    if args.path is None:
        raise UserError(f"{args.action} needs the folder of a run")
    folder = Path(args.path)
    if args.action == "compare":
        if args.other is None:
            raise UserError("compare needs the folders of two runs")
        return int(import_module("liquid_train.report.compare").compare(folder, Path(args.other), strict=args.strict))
    if args.other is not None:
        raise UserError(f"{args.action} takes one folder; {args.other} is a second one")
    if args.action == "status":
        report.status(folder)
        return 0
    if args.action == "replay":
        if args.step is None:
            raise UserError(f"replay needs --step N; liquid run status {folder} tells how many there are")
        import_module("liquid_train.debug.replay").replay(folder, args.step, args.output)
        return 0
    if not report.report_is_current(folder):
        report.write_report(folder)
    report.print_summary(folder)
    return 0


def checkpoint_tool(rest: list[str]) -> int:
    from liquid_train.checkpoint import folder as checkpoint

    parser = argparse.ArgumentParser(
        prog="liquid checkpoint", description="Look at checkpoints, and take the model out of one."
    )
    parser.add_argument("action", choices=("list", "verify", "export"))
    parser.add_argument(
        "path", help="list: a run's folder; verify: a checkpoint's; export: either (a run: its newest checkpoint)"
    )
    parser.add_argument(
        "output", nargs="?", help="export: a folder that is empty or not there, or a URL such as s3://bucket/model"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), help="export: cast the weights (default: as they are stored)"
    )
    parser.add_argument("--shard-gib", type=float, default=5.0, help="export: GiB of one safetensors file (default: 5)")
    args = parser.parse_args(rest)
    folder = Path(args.path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if args.action == "export":
        if args.output is None:
            raise UserError("export needs a folder to write to: liquid checkpoint export CHECKPOINT_OR_RUN OUTPUT")
        source = checkpoint.model_folder(folder)
        plan = import_module("liquid_train.checkpoint.export").export(
            source, args.output, dtype=args.dtype, shard_gib=args.shard_gib
        )
        print(
            f"{source} -> {args.output}: {plan.elements:,} parameters, {plan.size / 2**30:,.2f} GiB in "
            f"{len(plan.names)} file(s)"
        )
        return 0
    if args.action == "list":
        scored, best = checkpoint.read_scores(folder), checkpoint.best(folder)
        for found in checkpoint.committed(folder):
            size = sum(f["size"] for f in checkpoint.read_commit(found)["files"].values())
            mark = (
                f"  best: {scored['metric']} {scored['scores'][str(checkpoint.step_of(found))]:.4g}"
                if found == best
                else ""
            )
            print(f"{found}  {size / 2**20:,.1f} MiB{mark}")
        return 0
    wrong = checkpoint.problems(folder, hashes=True)
    print("\n".join(wrong) if wrong else f"{folder}: complete, every file as recorded")
    return 1 if wrong else 0


def data_tool(rest: list[str]) -> int:
    return int(import_module("data_prep.tools.command").main(rest))


TOOLS: dict[str, Callable[[list[str]], Any]] = {"run": run_tool, "checkpoint": checkpoint_tool, "data": data_tool}

if __name__ == "__main__":
    sys.exit(main())
