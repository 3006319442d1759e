"""Imports point one way: read from the source, lazy ones, those for type checkers and import_module("...") included."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("liquid_train", "evals", "data_prep")

# A package of liquid_train may import those before it. Settings are plain dataclasses: any package may read another's.
# Modules that lie directly in liquid_train/, config/, and the tools' command lines (command.py) have no place in this
# order.
ORDER = (
    "image_tokenizer",
    "data",
    "distributed",
    "model",
    "optim",
    "checkpoint",
    "generate",
    "measurement",
    "report",
    "scaling",
    "training",
    "debug",
    "serve",
)


@dataclass(frozen=True)
class Import:
    """how: "module" (when the module is imported, or for type checkers), "function" (inside one), or "name" (inside
    one, by import_module with a literal)."""

    importer: str
    imported: str
    how: str


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module and package of TOP below `root`."""
    found = {}
    for path in sorted(file for top in TOP for file in (root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_imports(root: Path) -> set[Import]:
    """Every import of one module of TOP by another."""
    known = modules(root)
    found = set()
    for importer, path in known.items():
        for name, how in imported_names(ast.parse(path.read_text()), "module"):
            while name and name not in known:  # an attribute of a module, or another project's
                name = name.rpartition(".")[0]
            if name and name != importer:
                found.add(Import(importer, name, how))
    return found


def imported_names(tree: ast.AST, how: str) -> Iterator[tuple[str, str]]:
    """(dotted name, how) of everything imported in a module, a name of `from x import name` as x.name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, how) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "a relative import"
            yield from ((f"{node.module}.{alias.name}", how) for alias in node.names)
        elif isinstance(node, ast.Call) and _function_name(node) == "import_module":
            name = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else ""
            yield name, "name" if how == "function" else how
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imported_names(node, "function" if inside else how)


def _function_name(call: ast.Call) -> str:
    """import_module(...) and importlib.import_module(...) -> import_module."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def cycles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of modules that import each other, each sorted."""
    graph: dict[str, set[str]] = {}
    for importer, imported in edges:
        graph.setdefault(importer, set()).add(imported)
    reached = {module: _reached(graph, module) for module in graph}
    groups = {tuple(sorted(m for m in reached[start] if start in reached.get(m, ()))) for start in reached}
    return sorted(list(group) for group in groups if group)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Modules that `start` imports, and those that these import, and so on; itself only through a cycle."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += graph.get(module, ())
    return seen


def package_of(module: str) -> str:
    """liquid_train.data.loader -> data; liquid_train.train -> train."""
    return module.split(".")[1]


@pytest.fixture(scope="module")
def found() -> set[Import]:
    return read_imports(ROOT)


def test_no_modules_import_each_other(found: set[Import]) -> None:
    edges = {(i.importer, i.imported) for i in found}
    assert len(edges) > 500
    assert cycles(edges - KNOWN_CYCLES) == []
    assert edges >= KNOWN_CYCLES, "remove from the list what is gone"


def test_liquid_train_starts_evals_and_data_prep_by_name(found: set[Import]) -> None:
    """Where a job begins, inside a function: whoever only trains loads neither."""
    above = {
        (i.importer, i.imported)
        for i in found
        if i.importer.startswith("liquid_train") and not i.imported.startswith("liquid_train") and i.how != "name"
    }
    assert above == KNOWN_UPWARD


def test_data_prep_does_not_know_evals(found: set[Import]) -> None:
    assert [i for i in found if i.importer.startswith("data_prep") and i.imported.startswith("evals")] == []


def test_packages_of_liquid_train_import_only_those_before_them(found: set[Import]) -> None:
    wrong = [
        i
        for i in found
        if i.importer.count(".") > 1
        and not i.importer.endswith(".command")
        and i.imported.count(".") > 1
        and i.imported.startswith("liquid_train")
        and not i.imported.endswith(".settings")
        and package_of(i.importer) in ORDER
        and package_of(i.imported) in ORDER
        and ORDER.index(package_of(i.importer)) < ORDER.index(package_of(i.imported))
    ]
    assert wrong == []
    packages = {path.name for path in (ROOT / "liquid_train").iterdir() if (path / "__init__.py").is_file()}
    assert packages == {*ORDER, "config"}, "give a new package its place in ORDER"


def test_the_reader_sees_every_kind_of_import(tmp_path: Path) -> None:
    (tmp_path / "liquid_train").mkdir()
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "__init__.py").write_text("from liquid_train import a\n")
    (tmp_path / "liquid_train" / "b.py").write_text("X = 1\n")
    (tmp_path / "liquid_train" / "c.py").touch()
    (tmp_path / "liquid_train" / "a.py").write_text(
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from liquid_train.b import X\n"
        'def f():\n    import liquid_train.b\n    import_module("evals").run()\n'
        "class C:\n    def g(self):\n        from evals import run\nimportlib.import_module('liquid_train.c')\n"
    )
    a, b = "liquid_train.a", "liquid_train.b"
    assert read_imports(tmp_path) == {
        Import(a, b, "module"),
        Import(a, b, "function"),
        Import(a, "evals", "name"),
        Import(a, "evals", "function"),
        Import(a, "liquid_train.c", "module"),
        Import("evals", a, "module"),
    }
    assert cycles({("1", "2"), ("2", "3"), ("3", "2"), ("3", "4"), ("5", "1")}) == [["2", "3"]]


# What is still to be untangled; nothing may be added.
KNOWN_CYCLES: set[tuple[str, str]] = {
    ("data_prep.shard_set.maker", "data_prep.tokenize"),
    ("evals.checks", "evals.settings"),
    ("evals.suite", "evals.run"),
    ("evals.watch", "evals.run"),
}
KNOWN_UPWARD: set[tuple[str, str]] = {
    ("liquid_train.image_tokenizer.training", "data_prep.sources.easy_vqa"),
}
