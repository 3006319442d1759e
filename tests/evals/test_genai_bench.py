"""GenAI-Bench's published layout: prompts with tags, and what is said of damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.genai_prompts import TaggedPrompt, read_genai_bench

PROMPTS = {
    "00001": {"id": "00001", "prompt": "two cats"},
    "00002": {"prompt": "a dog without a tail"},
    "00003": {"prompt": "a red box"},
}
SKILLS = {"counting": [1], "negation": [2], "basic": [3], "advanced": [1, 2]}


def folder(tmp_path: Path, prompts=PROMPTS, skills=SKILLS) -> Path:
    (tmp_path / "genai_image.json").write_text(json.dumps(prompts))
    (tmp_path / "genai_skills.json").write_text(json.dumps(skills))
    return tmp_path


def test_prompts_have_their_tags_and_groups(tmp_path):
    found = read_genai_bench(folder(tmp_path))
    assert (
        found[0] == TaggedPrompt("00001", "two cats", ["counting", "advanced"])
        and found[2].tags == ["basic"]
        and len(found) == 3
    )
    (tmp_path / "genai_image.json").unlink()
    (tmp_path / "prompts.txt").write_text("two cats\na dog without a tail\na red box\n")
    assert read_genai_bench(tmp_path) == found


def test_damaged_files_are_told_with_counts_and_names(tmp_path):
    for prompts, skills, message in (
        (PROMPTS, {**SKILLS, "scene": [9, 10]}, r"unknown prompts: 2 \(scene/00009, scene/00010\)"),
        (PROMPTS, {**SKILLS, "scene": [2, 2]}, r"stand twice: 1 \(scene/00002\)"),
        ({**PROMPTS, "00004": {"text": "no"}}, SKILLS, r"without a prompt: 1 \(00004\)"),
        ({**PROMPTS, "00004": {"prompt": " "}}, SKILLS, r"empty prompts: 1 \(00004\)"),
        ([1], SKILLS, "not an object"),
    ):
        with pytest.raises(ValueError, match=message):
            read_genai_bench(folder(tmp_path, prompts, skills))
    folder(tmp_path)
    (tmp_path / "genai_image.json").write_text('{"00001": {"prompt": "a"}, "00001": {"prompt": "b"}}')
    with pytest.raises(ValueError, match=r"keys that stand twice: 1 \(00001\)"):
        read_genai_bench(tmp_path)
    (tmp_path / "genai_image.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_genai_bench(tmp_path)
    (tmp_path / "genai_image.json").unlink()
    with pytest.raises(ValueError, match=r"neither genai_image.json nor prompts.txt"):
        read_genai_bench(tmp_path)
