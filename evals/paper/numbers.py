"""What the Liquid paper publishes (Wu et al., arXiv 2412.04332v4), next to the names of our numbers.

Read from the tables of version 4: 2a and 2b (GenAI-Bench, overall), 3 (MJHQ-30K), 5 (language, rows "multi-modal"), 6
(understanding, rows "Ours" and "Ours" with a longer pre-training; the row with another image tokenizer is left out). A
number that could not be read is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Liquid, arXiv 2412.04332v4"
MODELS = ("1B, Llama 3", "7B, Gemma", "7B, Gemma, pre-trained longer", "7B, Qwen2.5", "32B, Qwen2.5")

NOTHING = (None,) * len(MODELS)


@dataclass(frozen=True)
class Row:
    """metric: of `liquid eval`. keys: its number, the first that is there. scale: from ours to the paper's unit.
    published: by MODELS, None where the table has none. table: of the paper; "": no table has it. note: in what the two
    may differ."""

    label: str
    metric: str
    keys: tuple[str, ...]
    published: tuple[float | None, ...] = NOTHING
    table: str = ""
    scale: float = 1.0
    digits: int = 1
    note: str = ""


def task(label: str, name: str, published: tuple[float | None, ...] = NOTHING, note: str = "") -> Row:
    keys = tuple(f"language_all/{name}/{metric}" for metric in ("acc_norm", "acc"))
    return Row(label, "language", keys, published, "Table 5" if any(published) else "", 100.0, note=note)


def gemma(first: float, longer: float) -> tuple[float | None, ...]:
    return (None, first, longer, None, None)


GROUPS: dict[str, tuple[Row, ...]] = {
    "Images from words": (
        Row(
            "MJHQ-30K, FID (lower is better)",
            "reference_quality",
            ("reference_quality/fid",),
            (None, 5.47, None, None, None),
            "Table 3",
            digits=2,
        ),
        Row(
            "GenAI-Bench basic, VQAScore",
            "genai_bench_vqascore",
            ("genai_bench_vqascore/basic",),
            (None, 0.83, None, None, None),
            "Table 2a",
            digits=3,
            note="depends on the judge, vqascore.model",
        ),
        Row(
            "GenAI-Bench advanced, VQAScore",
            "genai_bench_vqascore",
            ("genai_bench_vqascore/advanced",),
            (None, 0.65, None, None, None),
            "Table 2b",
            digits=3,
            note="depends on the judge, vqascore.model",
        ),
    ),
    "Questions about images": (
        Row(
            "VQAv2, accuracy %",
            "vqav2",
            ("vqav2",),
            gemma(68.0, 71.3),
            "Table 6",
            100.0,
            note="the table does not name the split",
        ),
        Row("GQA, accuracy %", "gqa", ("gqa",), gemma(56.1, 58.4), "Table 6", 100.0),
        Row("TextVQA, accuracy %", "textvqa", ("textvqa",), gemma(40.4, 42.4), "Table 6", 100.0),
        Row(
            "POPE, F1 %, mean of the splits",
            "pope",
            ("pope/f1",),
            gemma(81.1, 81.1),
            "Table 6",
            100.0,
            note="the table does not say F1 or accuracy",
        ),
        Row(
            "MME, perception (of 2,000)",
            "mme",
            ("mme/perception",),
            gemma(1107.2, 1119.3),
            "Table 6",
            note="the table says MME alone",
        ),
    ),
    "Language, accuracy %": (
        task("HellaSwag", "hellaswag", (55.0, 76.1, None, 73.5, 79.7)),
        task("WinoGrande", "winogrande", (54.5, 72.7, None, 66.7, 73.5)),
        task("ARC easy", "arc_easy", (59.0, 75.6, None, 74.5, 78.2)),
        task("ARC challenge", "arc_challenge", (32.4, 49.0, None, 49.2, 56.3)),
        task("OpenBookQA", "openbookqa", note="the text names it, Table 5 does not have it"),
        task("PIQA", "piqa", (73.8, 81.0, None, 78.7, 79.8)),
        task("BoolQ", "boolq", (53.3, 81.0, None, 80.0, 84.9)),
        task(
            "MMLU",
            "mmlu",
            (24.5, 56.0, None, 62.0, 66.5),
            "5 shots in the paper; here as language.shots says, by default none",
        ),
    ),
}
