"""Tiny benchmarks in their published layouts: two images, the right answer by the image's colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def image(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (90, 64), color).save(path)


def dump(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def vqav2_questions() -> list[dict[str, Any]]:
    return [{"question_id": 10 + n, "image_id": 1 + n % 2, "question": f"question {n}?"} for n in range(4)]


def vqav2_annotations() -> list[dict[str, Any]]:
    answers = [["yes"] * 10, ["2"] * 7 + ["3"] * 3, ["red"] * 2 + ["blue"] * 8, ["no"] * 10]
    kinds = ["yes/no", "number", "other", "yes/no"]
    return [
        {
            "question_id": 10 + n,
            "image_id": 1 + n % 2,
            "answer_type": kinds[n],
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers[n], 1)],
        }
        for n in range(4)
    ]


def vqav2(root: Path, questions: Any = None, annotations: Any = None) -> dict[str, str]:
    for n in (1, 2):
        image(root / "val2014" / f"COCO_val2014_{n:012d}.jpg")
    return {
        "questions": dump(
            root / "questions.json",
            {"data_subtype": "val2014", "questions": vqav2_questions() if questions is None else questions},
        ),
        "annotations": dump(
            root / "annotations.json", {"annotations": vqav2_annotations() if annotations is None else annotations}
        ),
        "images": str(root / "val2014"),
    }


def textvqa(root: Path, *, answers: bool = True) -> dict[str, str]:
    rows = [
        {"question_id": n, "image_id": f"ab{n}", "question": f"what does it say, {n}?", "answers": ["stop"] * 10}
        for n in range(2)
    ]
    for row in rows:
        image(root / "images" / f"{row['image_id']}.jpg")
        if not answers:
            del row["answers"]
    return {"questions": dump(root / "val.json", {"data": rows}), "images": str(root / "images")}


def gqa(root: Path) -> dict[str, str]:
    image(root / "images" / "n1.jpg")
    kinds = {"001": ("query", "table"), "002": ("verify", "yes"), "003": ("choose", "left")}
    rows = {
        id: {"imageId": "n1", "question": f"{id}?", "answer": answer, "types": {"structural": kind}}
        for id, (kind, answer) in kinds.items()
    }
    return {"questions": dump(root / "testdev_balanced_questions.json", rows), "images": str(root / "images")}


def pope(root: Path) -> dict[str, str]:
    for split in ("random", "popular"):
        rows = [
            {
                "question_id": n,
                "image": "COCO_val2014_000000000001.jpg",
                "text": f"a dog, {n}?",
                "label": ("yes", "no")[n % 2],
            }
            for n in range(1, 5)
        ]
        dump(root / "coco" / f"coco_pope_{split}.json", 0)
        (root / "coco" / f"coco_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    image(root / "val2014" / "COCO_val2014_000000000001.jpg")
    return {"questions": str(root / "coco"), "images": str(root / "val2014")}


def mme(root: Path) -> dict[str, str]:
    """OCR in one folder, code_reasoning and posters in two."""
    for subtask, texts, images in (
        ("OCR", ".", "."),
        ("code_reasoning", "questions_answers_YN", "images"),
        ("posters", "questions_answers_YN", "images"),
    ):
        for name in ("0001", "0002"):
            image(root / subtask / images / f"{name}.png")
            (root / subtask / texts).mkdir(exist_ok=True)
            (root / subtask / texts / f"{name}.txt").write_text(
                "Is it A? Please answer yes or no.\tYes\nIs it B? Please answer yes or no.\tNo\n"
            )
    return {"folder": str(root)}
