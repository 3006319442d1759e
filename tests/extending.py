"""The examples of docs/extending*.md: their code as modules of a user's own, and their commands run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.commands import liquid

ROOT = Path(__file__).parents[1]


class Example:
    """One section of a page: `write` puts its modules into a folder; commands: its lines that begin with `liquid`."""

    def __init__(self, page: str, section: str) -> None:
        text = (ROOT / "docs" / page).read_text()
        found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert found, f"docs/{page} has no section {section}"
        self.text = found[1]
        self.commands = re.findall(r"^    (liquid .+)$", self.text, re.MULTILINE)

    def write(self, folder: Path) -> None:
        blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        assert blocks, "no block of code that begins with the name of its file"
        for name, code in blocks:
            (folder / name).write_text(code)


def run_command(folder: Path, command: str, *more: str) -> str:
    """What a command prints, run in `folder` with it on PYTHONPATH. Fails with its output unless it ends with 0."""
    words = [word for word in shlex.split(command) if word != "\\"]
    done = liquid(folder, *words[1:], *more, own=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
