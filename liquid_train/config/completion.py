"""Shell completion: `eval "$(liquid --completion bash)"`.

Jobs and tools, then keys, the configs of groups, choices and names of kinds; file names are left to the shell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from liquid_train.config.compose import job_schema, search_path
from liquid_train.config.fields import Section, registry
from liquid_train.config.overrides import CommandLine, groups_of, options
from liquid_train.config.schema_walk import find_setting, walk
from liquid_train.errors import UserError
from liquid_train.jobs import JOBS

# The line up to the cursor goes to `liquid --complete`. Bash cuts words at "=", so only what follows it may be
# answered; where nothing is answered, the shell completes file names.
SCRIPTS = {
    "bash": """_liquid() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    COMPREPLY=($(liquid --complete "$line" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -o default -F _liquid liquid""",
    "zsh": """autoload -U +X bashcompinit && bashcompinit
_liquid() {
    local IFS=$'\\n'
    COMPREPLY=($(liquid --complete "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
}
complete -o default -F _liquid liquid""",
    "fish": "complete -c liquid -f -a '(liquid --complete --whole (commandline -cp) 2>/dev/null)'",
}


def values_of(schema: type[Section], paths: list[Path], key: str) -> list[str]:
    """What may follow `key=`: names of a group, choices, true and false, names of kinds."""
    if any((path / key).is_dir() for path in paths):
        return options(key, paths)
    item = find_setting(schema, key)
    if item is None:
        return []
    found = [*item.choices, *(["true", "false"] if item.type is bool else [])]
    return found + (registry(item.kinds).names() if item.kinds else [])


def job_words(job: str, schema: type[Section], paths: list[Path], word: str) -> list[str]:
    """Completions of one word of a job's command line, whole words."""
    key, equals, start = word.partition("=")
    if equals:
        return [f"{key}={value}" for value in values_of(schema, paths, key) if value.startswith(start)]
    keys = [f"{k}=" for k, item in walk(schema) if item.section is None and "NAME" not in k]
    groups = [f"{name}=" for name in groups_of(paths[0] / f"{job}.yaml")]
    return sorted({w for w in [*keys, *groups, "--help", "--cfg", "--config-dir"] if w.startswith(word)})


ACTIONS = {
    "run": ["list", "status", "report", "compare", "replay"],
    "checkpoint": ["list", "verify", "export"],
    "data": ["merge", "verify", "describe", "inspect", "index"],
}


def main(flag: str, rest: list[str]) -> int:
    """`--completion SHELL` prints the shell's script; `--complete LINE` the completions of the line's last word."""
    if flag == "--completion":
        shell = rest[0] if rest else ""
        if shell not in SCRIPTS:
            raise UserError(f"--completion {shell}: one of {', '.join(SCRIPTS)}")
        print(SCRIPTS[shell])
        return 0
    parser = argparse.ArgumentParser(prog="liquid --complete")
    parser.add_argument("--whole", action="store_true", help="whole words, not only what follows the last =")
    parser.add_argument("line")
    args = parser.parse_args(rest)
    words = args.line.split(" ")
    for word in complete([w for w in words[1:-1] if w], words[-1]):
        print(word if args.whole else word.partition("=")[2] or word)
    return 0


def complete(before: list[str], word: str) -> list[str]:
    """Whole words that the last one may become. before: the words between `liquid` and it."""
    if not before:
        return [w for w in [*JOBS, *ACTIONS, "--help", "--version", "--completion"] if w.startswith(word)]
    if before[0] in ACTIONS:
        return [a for a in ACTIONS[before[0]] if a.startswith(word)] if len(before) == 1 else []
    if before[0] not in JOBS:
        return []
    return job_words(before[0], job_schema(before[0]), search_path(CommandLine()), word)
