"""Imports point one way: read from the source, lazy ones, those for type checkers and import_module("...") included."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.import_reader import ROOT, Import, read_imports

# A package of liquid_train may import those before it. Settings are plain dataclasses: any package may read another's.
# Modules that lie directly in liquid_train/, config/, and the tools' command lines (command.py) have no place in this
# order.
ORDER = (
    "image_tokenizer",
    "distributed",
    "data",
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
    assert cycles(edges) == []


def test_liquid_train_starts_evals_and_data_prep_by_name(found: set[Import]) -> None:
    """Where a job begins, inside a function: whoever only trains loads neither."""
    above = {
        (i.importer, i.imported)
        for i in found
        if i.importer.startswith("liquid_train") and not i.imported.startswith("liquid_train") and i.how != "name"
    }
    assert above == set()


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
