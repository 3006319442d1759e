"""What the documents point at is there: links, named files and tests, targets of make, packages in the picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import LONG

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# `conf/vq/easy.yaml`; not `evals/metrics/NAME.py`, which stands for any
NAMED = re.compile(r"`((?:[\w.-]+/)+(?!NAME\b)[\w.-]+\.(?:py|sh|sbatch|yaml|svg))\b")
TEST = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")
# a path may leave out where it begins: `data/packing.py`, `data/mixed.yaml`
BEGINNINGS = ("", "liquid_train", "conf", "evals", "data_prep")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pages
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (page.parent / target).exists()] == []


@pages
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in NAMED.findall(text) if not any((ROOT / b / name).is_file() for b in BEGINNINGS)]
    for file, test in TEST.findall(text):
        path = ROOT / file
        if not path.is_file() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{test}")
    assert missing == []


@pages
def test_make_has_the_targets_that_are_named(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    text = page.read_text(encoding="utf-8")
    commands = [*re.findall(r"`make ([^`]+)`", text), *re.findall(r"^(?: {4})?make (.+)$", text, flags=re.M)]
    words = {
        word for command in commands for word in command.partition("#")[0].split() if re.fullmatch("[a-z-]+", word)
    }
    assert words - targets == set()


@pytest.mark.parametrize("beginning", LONG)
def test_tests_that_are_listed_as_long_exist(beginning: str) -> None:
    path, _, test = beginning.partition("::")
    found = list(ROOT.glob(f"{path.rstrip('/')}*"))
    assert found and (not test or f"def {test}(" in found[0].read_text(encoding="utf-8"))


def test_the_picture_of_the_packages_names_every_one() -> None:
    """`python -m docs.packages` draws it again."""
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", (ROOT / "docs" / "images" / "packages.svg").read_text())
    names = {name.strip() for text in shown for name in text.split(",")}
    packages = {path.parent.name for path in (ROOT / "liquid_train").glob("*/__init__.py")}
    assert packages | {"evals", "data_prep"} <= names
