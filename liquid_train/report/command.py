"""`liquid run`: looking at runs."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from liquid_train.errors import UserError
from liquid_train.report import html as report


def main(rest: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="liquid run", description="Look at runs.")
    parser.add_argument("action", choices=("list", "status", "report", "compare", "replay"))
    parser.add_argument("path", nargs="?", default=None, help="a run's folder (list: a folder of runs)")
    parser.add_argument("other", nargs="?", default=None, help="compare: the other run's folder")
    parser.add_argument(
        "--strict", action="store_true", help="compare: exit with 2 when something was not measured alike"
    )
    parser.add_argument("--step", type=int, help="replay: which step's batch to rebuild and take apart")
    parser.add_argument("--output", help="report: the page's file; replay: a folder for documents.jsonl and images.png")
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
    report.report(folder, Path(args.output) if args.output else None)
    return 0
