"""GenAI-Bench's prompts with their skill tags (Li et al. 2024), from a local folder in the published layout.

FOLDER/genai_image.json   {"00001": {"prompt": ...}, ...}     (or prompts.txt: line i is prompt i, from 1)
FOLDER/genai_skills.json  {"counting": [3, 17, ...], "basic": [...], "advanced": [...], ...}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.json_files import read_object, refuse
from liquid_train.errors import UserError
from liquid_train.files import lines_of


@dataclass(frozen=True)
class TaggedPrompt:
    """id: five digits, as the files have it. tags: its skills, and its groups (basic, advanced) where the file lists
    them."""

    id: str
    text: str
    tags: list[str]


def read_genai_bench(folder: Path) -> list[TaggedPrompt]:
    """In the order of the ids. Raises UserError for files that are missing or damaged, empty prompts, ids that stand
    twice and tags of prompts that do not exist, each with how many and which."""
    prompts = read_genai_prompts(folder)
    skills = read_object(folder / "genai_skills.json")
    ids = {tag: [f"{int(n):05d}" for n in numbers] for tag, numbers in skills.items()}
    refuse(
        [f"{tag}/{i}" for tag, own in ids.items() for i in own if i not in prompts],
        f"{folder / 'genai_skills.json'}: tags of unknown prompts",
    )
    refuse(
        [f"{tag}/{i}" for tag, own in ids.items() for i in sorted(set(own)) if own.count(i) > 1],
        f"{folder / 'genai_skills.json'}: ids that stand twice",
    )
    refuse([i for i, text in prompts.items() if not text.strip()], f"{folder}: empty prompts")
    members = {tag: set(own) for tag, own in ids.items()}
    return [TaggedPrompt(i, prompts[i], [tag for tag in members if i in members[tag]]) for i in sorted(prompts)]


def read_genai_prompts(folder: Path) -> dict[str, str]:
    """Text by id."""
    listed, lines = folder / "genai_image.json", folder / "prompts.txt"
    if listed.is_file():
        rows = read_object(listed)
        refuse(
            [i for i, row in rows.items() if not (isinstance(row, dict) and isinstance(row.get("prompt"), str))],
            f"{listed}: entries without a prompt",
        )
        return {i: row["prompt"] for i, row in rows.items()}
    if lines.is_file():
        return {f"{n:05d}": text for n, text in enumerate(lines_of(lines.read_text(encoding="utf-8")), 1)}
    raise UserError(
        f"genai_bench={folder}: neither genai_image.json nor prompts.txt there; give the folder of GenAI-Bench's files"
    )
