"""The imports of the program, read from its source: lazy ones, those for type checkers and import_module("...")
included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = ("liquid_train", "evals", "data_prep")


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
