"""Draw docs/images/packages.svg from the imports in the source, which package imports which: python -m docs.packages

Every arrow is an import, wherever in a file it stands, but for what is started by name (import_module). Left out: what
nearly everything imports (COMMON), settings.py (config/ puts those of all packages together), and an arrow where a
longer way leads to the same package. Packages that import each other are drawn with a dashed arrow for the rarer
direction.
"""

from __future__ import annotations

from collections import Counter

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tests.import_reader import ROOT, TOP, modules, read_imports

OUTPUT = ROOT / "docs" / "images" / "packages.svg"
COMMON = ("config", "errors", "files", "logs", "packages", "registry", "vocabulary")
Edges = Counter[tuple[str, str]]


def package_of(module: str) -> str:
    """The box that a module is drawn in: its package in liquid_train, a file directly there, or evals or data_prep."""
    parts = module.split(".")
    return parts[1] if parts[0] == "liquid_train" and len(parts) > 1 else parts[0]


def edges() -> tuple[Edges, Counter[str]]:
    """{(importer, imported): imports} between packages without the common ones, and lines of code of every package."""
    found, lines = Edges(), Counter[str]()
    for name, path in modules(ROOT).items():
        lines[package_of(name)] += len(path.read_text(encoding="utf-8").splitlines())
    left_out = {*COMMON, "liquid_train"}  # the latter: its __init__.py, which holds the version
    for edge in read_imports(ROOT):
        importer, package = package_of(edge.importer), package_of(edge.imported)
        by_settings = edge.importer.endswith(".settings") or edge.imported.endswith(".settings")
        if edge.how != "name" and not by_settings and package != importer and not {package, importer} & left_out:
            found[importer, package] += 1
    del lines["liquid_train"]  # its __init__.py
    return found, lines


def reachable(graph: Edges, start: str, without: tuple[str, str] | None = None) -> set[str]:
    """Packages that a chain of imports leads to from `start`."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        here = waiting.pop()
        for importer, target in graph:
            if importer == here and (importer, target) != without and target not in found:
                found.add(target)
                waiting.append(target)
    return found


def one_way(graph: Edges) -> tuple[Edges, list[tuple[str, str]]]:
    """The graph without cycles, and the arrows taken out for it: in each cycle the one with the fewest imports."""
    left, taken = Edges(graph), []
    while circular := [edge for edge in left if edge[0] in reachable(left, edge[1])]:
        taken.append(min(circular, key=lambda edge: (left[edge], edge)))
        del left[taken[-1]]
    return left, taken


def heights(graph: Edges, names: list[str]) -> dict[str, int]:
    """0 for what imports nothing; otherwise one more than the highest that it imports."""
    found: dict[str, int] = {}
    while len(found) < len(names):
        for name in names:
            below = {target for importer, target in graph if importer == name}
            if name not in found and below <= found.keys():
                found[name] = max((found[target] + 1 for target in below), default=0)
    return found


def places(height: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Centre of every box; a row is centred."""
    rows: dict[int, list[str]] = {}
    for name in sorted(height):
        rows.setdefault(height[name], []).append(name)
    return {
        name: (1.7 * (i - (len(row) - 1) / 2), 1.25 * level)
        for level, row in rows.items()
        for i, name in enumerate(row)
    }


def draw() -> Figure:
    graph, lines = edges()
    acyclic, back = one_way(graph)
    direct = [edge for edge in acyclic if edge[1] not in reachable(acyclic, edge[0], without=edge)]
    at = places(heights(acyclic, [name for name in lines if name not in COMMON]))
    top, side = max(y for _, y in at.values()), max(abs(x) for x, _ in at.values()) + 0.9
    figure = Figure(figsize=(1.1 * 2 * side, 1.05 * (top + 2.2)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-side, side), ylim=(-1.7, top + 0.5))
    axes.axis("off")
    for edge, dashed in [*((e, False) for e in direct), *((e, True) for e in back)]:
        style = {"arrowstyle": "-|>", "color": "#b05050" if dashed else "#7f8c9b", "linestyle": ":" if dashed else "-"}
        (x0, y0), (x1, y1) = at[edge[0]], at[edge[1]]
        shift = 0.3 if y1 < y0 else -0.3
        axes.annotate(
            "", (x1, y1 + shift), (x0, y0 - shift), arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=0
        )
    for name, (x, y) in at.items():
        box(axes, name, lines[name], x, y, 1.5, "#dce9f7" if name not in TOP else "#f7ecd5")
    box(axes, ", ".join(COMMON), sum(lines[name] for name in COMMON), 0, -1.25, 1.8 * side, "#eeeeee")
    return figure


def box(axes: matplotlib.axes.Axes, name: str, lines: int, x: float, y: float, width: float, color: str) -> None:
    shape = FancyBboxPatch((x - width / 2, y - 0.27), width, 0.54, boxstyle="round,pad=0.03", fc=color, ec="#7f8c9b")
    axes.add_patch(shape)
    axes.text(x, y + 0.07, name, ha="center", va="center", fontsize=10)
    axes.text(x, y - 0.14, f"{lines:,} lines", ha="center", va="center", fontsize=7, color="#555555")


if __name__ == "__main__":
    # text stays text, and the same source gives the same bytes
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "packages", "font.family": "DejaVu Sans"}):
        draw().savefig(OUTPUT, metadata={"Date": None})
    print(OUTPUT)
