"""Do the tests notice a wrong line? `python -m tests.mutations --count 20 --seed 0` makes one small change of the
source at a time, in a copy of the checkout, and runs the tests of the changed module until one fails.

Changes: a comparison turned or moved by its boundary, + and -, and and or, a dropped `not`, an integer plus one, a
flipped True. Docstrings, annotations, decorators and f-strings are left alone. A change that no test notices is listed
as survived: either a test is missing, or the change makes no difference that matters; judge it and say which.

Exit status: 0 when every change was caught, else 1.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("liquid_train", "evals", "data_prep")
COPIED = (*SOURCES, "conf", "tests", "benchmarks", "launch", "docs")
TIMEOUT = 900  # seconds for the tests of one change; one that hangs is caught
# modules that stand alone in liquid_train/, and where their tests are
ALONE = {
    "cli": ["tests/test_cli.py"],
    "debug": ["tests/data_prep/test_data_tools.py", "tests/distributed/test_safety.py"],
    "files": ["tests/checkpoint", "tests/report"],
    "launcher": ["tests/distributed/test_training.py"],
    "registry": ["tests/test_registry.py"],
    "train": ["tests/training", "tests/distributed/test_training.py", "tests/distributed/test_safety.py"],
    "vocabulary": ["tests/model", "tests/data"],
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SIGNS: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}


@dataclass(frozen=True)
class Mutation:
    """One change: bytes start to end of a file, relative to the checkout, become `after`."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {' '.join(self.before.split())}  ->  {self.after}"

    def apply(self, root: Path) -> None:
        path = root / self.file
        content = path.read_bytes()
        path.write_bytes(content[: self.start] + self.after.encode() + content[self.end :])


def changed(node: ast.AST) -> ast.expr | None:
    """The wrong expression for a node, or None where it is not of a kind that is changed."""
    wrong = copy.deepcopy(node)
    match wrong:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            wrong.ops = [COMPARISONS[type(op)]()]
        case ast.BinOp(op=op) if type(op) in SIGNS and not any(is_text(part) for part in (wrong.left, wrong.right)):
            wrong.op = SIGNS[type(op)]()
        case ast.BoolOp(op=op):
            wrong.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not()):
            return wrong.operand
        case ast.Constant(value=bool() as value):
            wrong.value = not value
        case ast.Constant(value=int() as value):
            wrong.value = value + 1
        case _:
            return None
    return wrong


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def expressions(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that may be changed: none in annotations, decorators and f-strings, or below `if TYPE_CHECKING`."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, ast.JoinedStr) or (
                isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"
            )
            if isinstance(child, ast.AST) and not skipped:
                yield from expressions(child)


def mutations(root: Path, file: str) -> list[Mutation]:
    """All changes of one file."""
    content = (root / file).read_bytes()
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in expressions(ast.parse(content)):
        wrong = changed(node)
        if wrong is None or not isinstance(node, ast.expr) or node.end_lineno is None or node.end_col_offset is None:
            continue
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(wrong)
        after = text if isinstance(wrong, ast.Constant) else f"({text})"
        found.append(Mutation(file, node.lineno, start, end, content[start:end].decode(), after))
    return found


def tests_of(file: str) -> list[str]:
    """Where the tests of a source file are: files that import it first, then the folder of its package."""
    parts = Path(file).with_suffix("").parts
    if parts[0] != "liquid_train":
        folders = [f"tests/{parts[0]}"]
    elif len(parts) == 2:
        folders = ALONE.get(parts[1], ["tests"])
    else:
        folders = [f"tests/{parts[1]}"] if (ROOT / "tests" / parts[1]).is_dir() else ALONE.get(parts[1], ["tests"])
    name = re.compile(
        rf"\b{re.escape('.'.join(parts))}\b|from {re.escape('.'.join(parts[:-1]))} import .*\b{parts[-1]}\b"
    )
    named = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if name.search(p.read_text(encoding="utf-8"))]
    named.sort(key=lambda p: "distributed" in p.parts)  # the slowest last
    return list(dict.fromkeys([*(p.relative_to(ROOT).as_posix() for p in named), *folders]))


def first_failure(root: Path, tests: list[str]) -> str | None:
    """Name of the first test that fails in a checkout, or None."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"a test that hangs ({TIMEOUT} s)"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.M)
    return failed[1] if failed else f"pytest's exit status {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"


def outcome(mutation: Mutation, scratch: Path) -> str:
    """`caught by ...` or `survived ...`."""
    root = scratch / "copy"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for file in ("pyproject.toml", "README.md", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / file, root / file)
    tests = tests_of(mutation.file)
    original = (root / mutation.file).read_bytes()
    mutation.apply(root)
    try:
        failed = first_failure(root, tests)
        if failed is None:
            return f"survived {' '.join(tests)}"
        (root / mutation.file).write_bytes(original)
        if "::" in failed and first_failure(root, [failed]) is not None:
            return f"survived? {failed} fails without the change too"
        return f"caught by {failed}"
    finally:
        shutil.rmtree(root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=20, help="changes (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="which ones are drawn (default 0)")
    parser.add_argument("--only", default="", help="in files whose path begins so, such as liquid_train/data")
    parser.add_argument("--list", action="store_true", help="list them, run nothing")
    args = parser.parse_args()
    files = [p.relative_to(ROOT).as_posix() for top in SOURCES for p in sorted((ROOT / top).rglob("*.py"))]
    possible = [m for file in files if file.startswith(args.only) for m in mutations(ROOT, file)]
    drawn = random.Random(args.seed).sample(possible, min(args.count, len(possible)))
    print(f"{len(drawn)} of {len(possible)} possible changes, seed {args.seed}", flush=True)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        for mutation in drawn:
            found = "" if args.list else outcome(mutation, Path(folder))
            survived += not args.list and not found.startswith("caught")
            print(f"{mutation}\n    {found}", flush=True)
    print(f"{len(drawn) - survived} caught, {survived} survived" if not args.list else "nothing was run")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
