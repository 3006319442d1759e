"""One job of the command line: its help, its whole config, or the job itself."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from liquid_train.config.compose import job_schema, load, search_path, to_yaml
from liquid_train.config.help import job_help
from liquid_train.config.overrides import CommandLine
from liquid_train.jobs import JOBS


def run_job(name: str, arguments: list[str]) -> int:
    """Exit status. Raises UserError for whatever is wrong with the arguments, before any work."""
    if any(a in ("-h", "--help") for a in arguments):
        print(help_text(name, arguments))
        return 0
    rest = [a for a in arguments if a != "--cfg"]
    if name == "eval":
        rest = [sheet_or_metrics(a) for a in rest]
    config = load(name, rest)
    if len(rest) < len(arguments):
        print(to_yaml(config), end="")
        return 0
    job = JOBS[name]
    module, _, function = job.entry.partition(":")
    run: Any = getattr(import_module(module), function)
    status = run(config, rest) if job.takes_arguments else run(config)
    return int(status or 0)


def help_text(name: str, arguments: list[str]) -> str:
    """--help, or --help KEY, wherever it stands."""
    at = next(n for n, a in enumerate(arguments) if a in ("-h", "--help"))
    rest = [*arguments[:at], *arguments[at + 1 :]]
    key = arguments[at + 1] if at + 1 < len(arguments) and not arguments[at + 1].startswith("-") else None
    line = CommandLine.read([a for a in rest if a != key and a != "--cfg"])
    return job_help(name, job_schema(name), search_path(line), key.partition("=")[0] if key else None)


def sheet_or_metrics(argument: str) -> str:
    """`evals=paper` names a sheet, `evals=[vqa,t2i]` metrics: in training, evals is a group of settings."""
    return re.sub(r"^evals=(?=\[)", "metrics=", re.sub(r"^evals=(?!\[)", "sheet=", argument))
