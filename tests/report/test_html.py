"""The report of a run folder: complete runs, unfinished and damaged ones, hostile text, and when it counts as
current."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from liquid_train.checkpoint.folder import SCHEMA
from liquid_train.report import html as report
from liquid_train.report.metric_families import headline

ROOT = Path(__file__).resolve().parents[2]
COLORS = {
    "black": "#000",
    "blue": "#00f",
    "brown": "#a52a2a",
    "gray": "#808080",
    "green": "#0f0",
    "red": "#f00",
    "teal": "#008080",
    "yellow": "#ff0",
}
SHAPES = ("circle", "rectangle", "triangle")
TASKS = {"text": 3.2, "t2i": 2.6, "vqa": 0.22}
CASES = ("color", "shape", "full_caption_color", "full_caption_shape")
EVALUATED = (
    "vqa_accuracy",
    "vqa_accuracy_color",
    "vqa_accuracy_yes_no",
    "right_color",
    "frechet_distance",
    "frechet_infinity",
    "frechet_floor",
    "kernel_distance",
    "kernel_deviation",
    "precision",
    "recall",
    "self_vqascore",
    *(f"caption_auc/{case}" for case in CASES),
    *(f"self_vqascore_{kind}/{case}" for case in CASES for kind in ("right", "wrong")),
    "mine",
)
SPELLED = ["colour", "shape", "full caption colour", "full caption shape"]
FIGURES = {
    "Questions answered right": ["all", "colour", "yes/no"],
    "Images generated as asked, colour": [],
    "Fréchet distance (not FID)": ["distance", "infinity", "floor"],
    "Kernel distance (not KID)": ["distance", "deviation"],
    "Precision and recall, generated images": ["precision", "recall"],
    "Self-VQAScore, generated images": [],
    "Right from wrong captions, AUC": SPELLED,
    "Self-VQAScore, right captions": SPELLED,
    "Self-VQAScore, wrong captions": SPELLED,
    "mine": [],
}
CONFIG = """\
seed: 0
run:
  name: quickstart
backbone:
  init: random
  architecture: {model_type: qwen2, num_hidden_layers: 4, hidden_size: 192, num_attention_heads: 6}
data:
  seq_len: 1024
  global_batch: 16
  sources:
    text: {path: data/quickstart/text-train, task: text, weight: 0.2}
    t2i: {path: data/quickstart/images-train, task: t2i, weight: 1.0}
    vqa: {path: data/quickstart/images-train, task: vqa, weight: 2.0}
train: {steps: 1200, tokens: null}
optimizer: {lr: 0.003}
schedule: {kind: cosine}
parallel: {precision: bf16}
"""


def shape_image(color: str, shape: str, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (64, 64), tuple(int(v) for v in rng.integers(225, 256, 3)))
    x, y, w, h = (int(v) for v in (*rng.integers(4, 34, 2), *rng.integers(14, 28, 2)))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((x, y, x + w, y + w), fill=COLORS[color])
    elif shape == "rectangle":
        draw.rectangle((x, y, x + w, y + h), fill=COLORS[color])
    else:
        draw.polygon([(x, y + h), (x + w, y + h), (x + w // 2, y)], fill=COLORS[color])
    return image


def metrics_lines(steps: int, rng: np.random.Generator) -> list[dict]:
    """Training lines 1..steps and an evaluation every 200: 16,384 tokens a step at 8,192 tokens/s, so 2 s a step."""
    lines: list[dict] = []
    for step in range(1, steps + 1):
        fall = math.exp(-step / 150)
        loss = {task: low + (7.5 - low) * fall + float(rng.normal(0, 0.06)) for task, low in TASKS.items()}
        line: dict[str, Any] = {
            "step": step,
            "tokens": 16384 * step,
            "documents": 150 * step,
            "loss": sum(loss.values()) / 3,
            "lr": 3e-3 * math.cos(step / steps * 1.57),
        }
        line |= {f"loss/{task}": value for task, value in loss.items()} | {
            f"accuracy/{task}": min(0.99, math.exp(-value / 3)) for task, value in loss.items()
        }
        line |= {
            "grad_norm": 0.4 + 4 * fall * float(rng.random()),
            "tokens_per_second": 8192.0,
            "mfu": None,
            "data_wait_fraction": 0.004 * float(rng.random()),
        }
        line |= {"time/data": 0.01, "time/forward": 0.6, "time/backward": 1.2, "time/optimizer": 0.1}
        line |= {"time/checkpoint": 2.0 if step % 100 == 1 else 0.0, "time/evaluation": 0.0}
        line |= {"packing_efficiency": 0.97 + 0.02 * float(rng.random()), "memory_gib": 0.0}
        line |= {"epoch/text": step / 300, "epoch/t2i": step / 150, "epoch/vqa": step / 90}
        lines.append(line)
        if step % 200 == 0:
            held = {f"val/loss/{task}": value + 0.05 for task, value in loss.items()}
            held |= {f"val/accuracy/{task}": math.exp(-(value + 0.05) / 3) for task, value in loss.items()}
            found = {name: 0.88 - 0.5 * fall for name in EVALUATED}
            lines.append({"step": step, **held, **{f"eval/{name}": value for name, value in found.items()}})
    return lines


def write_evals(run: Path, rng: np.random.Generator) -> None:
    (run / "evals" / "examples").mkdir(parents=True)
    examples = []
    for i in range(12):
        color, shape = list(COLORS)[i % 8], SHAPES[i % 3]
        shape_image(color, shape, rng).save(run / "evals" / "examples" / f"{i:03d}.png")
        question, truth = (
            ("what color is the shape?", color),
            ("what shape is present?", shape),
            (f"is there not a {color} shape in the image?", "no"),
        )[i % 3]
        examples.append(
            {
                "image": f"examples/{i:03d}.png",
                "question": question,
                "answer": "circle" if i == 4 else truth.title(),
                "truth": truth,
            }
        )
    by_type = {
        "color": {"count": 1521, "accuracy": 0.991},
        "shape": {"count": 1483, "accuracy": 0.742},
        "yes/no": {"count": 6669, "accuracy": 0.874},
    }
    vqa = {
        "step": 1200,
        "count": 9673,
        "accuracy": 0.8721,
        "by_type": by_type,
        "blind_accuracy": 0.6703,
        "shuffled_accuracy": 0.6651,
        "examples": examples,
    }
    vqa["examples_note"] = "images as the VQ decodes them"
    vqa["shuffled_by_type"] = {
        "color": {"count": 1521, "accuracy": 0.148},
        "yes/no": {"count": 6669, "accuracy": 0.857},
    }
    vqa["blind_by_type"] = {"color": {"accuracy": 0.151}, "shape": {"accuracy": 0.348}, "yes/no": {"accuracy": 0.861}}
    (run / "evals" / "vqa.json").write_text(json.dumps(vqa))
    prompts = [
        {"prompt": f"a {c} {s}", "right_color": 1.0, "right_shape": float(rng.integers(3, 11)) / 10, "distinct": 10}
        for s in SHAPES
        for c in COLORS
    ]
    t2i: dict[str, Any] = {
        "step": 1200,
        "count": 240,
        "right_color": 0.954,
        "right_shape": 0.571,
        "distinct_of_10": 9,
        "distinct_mean": 9.9,
        "guidance": 3.0,
    }
    t2i |= {"frechet_distance": 3.4187, "frechet_features": "mean and spread of 8x8 pixel blocks; not Inception"}
    t2i |= {"judge_color_accuracy": 1.0, "judge_shape_accuracy": 0.992, "prompts": prompts}
    (run / "evals" / "t2i.json").write_text(json.dumps(t2i))
    Image.new("RGB", (66, 66), "white").save(run / "evals" / "drawn.png")


def write_samples(run: Path, rng: np.random.Generator) -> None:
    final = run / "samples" / "final"
    final.mkdir(parents=True)
    prompts = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
    rows = []
    for i, prompt in enumerate(prompts):
        _, color, shape = prompt.split()
        shape_image(color, shape, rng).save(final / f"{i:05d}.png")
        rows.append(json.dumps({"file": f"{i:05d}.png", "prompt": prompt, "seed": 0}))
    (final / "index.jsonl").write_text("\n".join(rows) + "\n")
    for step in range(200, 1201, 200):
        grid = Image.new("RGB", (6 * 66, 2 * 66), "white")
        for i, prompt in enumerate(prompts[:12]):
            _, color, shape = prompt.split()
            grid.paste(shape_image(color, shape, rng), (i % 6 * 66, i // 6 * 66))
        grid.save(run / "samples" / f"step-{step:08d}.png")
        (run / "samples" / f"step-{step:08d}.json").write_text(
            json.dumps({"step": step, "prompts": prompts[:12], "columns": 6, "guidance": 3.0})
        )


def make_run(run: Path, *, steps: int = 1200, evals: bool = True, samples: bool = True) -> Path:
    """A run folder like one of `liquid train experiment=quickstart`, in the formats that docs/formats.md describes."""
    rng = np.random.default_rng(0)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    environment = {
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
        "git_commit": "0f3a9c1",
        "devices": ["cpu", "cpu"],
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics_lines(steps, rng)))
    for step in (600, 1200):
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "COMMIT.json").write_text(json.dumps({"schema": SCHEMA, "files": {}}))
    if evals:
        write_evals(run, rng)
    if samples:
        write_samples(run, rng)
    return run


class Page(HTMLParser):
    """Text, tags and links of a page; checks that elements are closed in order."""

    VOID = {"meta", "link", "img", "br", "path", "use"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.html = path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "quickstart")
    assert report.write_report(run) == run / "report.html"
    return run


@pytest.fixture(scope="module")
def page(full_run: Path) -> Page:
    return Page(full_run / "report.html")


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.links and all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", page.html)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_number_of_a_finished_run_is_shown(page: Page) -> None:
    text = " ".join(page.text.split())
    for shown in (
        "finished: 1,200 of 1,200 steps",
        "87.2%",
        "99.1%",
        "74.2%",
        "67.0%",
        "66.5%",
        "34.8%",
        "95.4%",
        "57.1%",
    ):
        assert shown in text, shown
    for shown in ("9.9 on average", "3.419", "not Inception", "as the VQ decodes them", "40 min 00 s", "8,192"):
        assert shown in text, shown
    for shown in (
        "Loss, text",
        "Loss, t2i",
        "Token accuracy, vqa",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Packing",
        "waiting",
        "Seconds a logged step",
    ):
        assert shown in text, shown
    for shown in (
        "a teal triangle",
        "is there not a brown shape in the image?",
        "learning rate 0.003",
        "num_hidden_layers: 4",
        "versions.torch",
        "0f3a9c1",
    ):
        assert shown in text, shown
    assert "missing" not in re.findall(r'<p class="(\w+)"', page.html)
    assert page.tags.count("img") == 24 + 12 + 6 + 1


def test_right_and_wrong_answers_are_marked_in_words(page: Page) -> None:
    text = " ".join(page.text.split())
    assert text.count("✓") == 11 and text.count("✗") == 1
    assert "✗ circle wrong, truth: rectangle" in text


def test_memory_and_mfu_that_no_device_told_have_no_curve(page: Page) -> None:
    assert "FLOPs" not in page.text and "Peak memory" not in page.text


def test_curves_take_their_colours_from_the_page(page: Page) -> None:
    svgs = re.findall(r"<svg.*?</svg>", page.html, flags=re.S)
    assert len(svgs) == 1 + 2 * len(TASKS) + len(FIGURES) + 2 + 4
    for svg in svgs:
        assert "var(--text-soft)" in svg and not re.search(r"#[0-9a-f]{6}\b", svg) and "font-family" not in svg


def test_evaluations_of_one_kind_share_a_figure_with_a_legend(page: Page) -> None:
    section = page.html[page.html.index('<section id="evaluations">') :].split("</section>")[0]
    figures = dict(re.findall(r"<figure><h3>(.*?)</h3>(.*?)</figure>", section, flags=re.S))
    legends = {
        title: [
            label
            for label in re.findall(r"<text[^>]*>([^<]*)</text>", svg)
            if re.match(r"[a-z]", label) and label != "step"
        ]
        for title, svg in figures.items()
    }
    assert legends == FIGURES
    assert all(
        "var(--heldout)" in svg and ("var(--train)" in svg) == (len(legends[title]) > 1)
        for title, svg in figures.items()
    )
    assert (
        "var(--fourth)" in figures["Right from wrong captions, AUC"]
        and "var(--baseline)" in figures["Right from wrong captions, AUC"]
    )


def test_the_terminal_line_of_an_evaluation_shows_the_headlines() -> None:
    found = {"val/loss/t2i": 1.23456, "val/loss/vqa": 0.5, "val/accuracy/t2i": 0.4} | {
        f"eval/{name}": 0.25 for name in EVALUATED
    }
    shown = (
        "vqa_accuracy 0.25, right_color 0.25, frechet_distance 0.25, kernel_distance 0.25, self_vqascore 0.25, "
        "caption_auc/color 0.25"
    )
    assert headline(found) == f"val loss t2i 1.235, vqa 0.5, {shown} ({len(EVALUATED) - 6 + 1} more in metrics.jsonl)"
    assert (
        headline({"val/loss/text": 2.0}) == "val loss text 2"
        and headline({"eval/mine": 1.0}) == "1 more in metrics.jsonl"
    )


def test_the_page_is_the_same_when_made_again_and_small_for_a_long_run(
    full_run: Path, page: Page, tmp_path: Path
) -> None:
    report.write_report(full_run)
    assert (full_run / "report.html").read_text() == page.html
    long = make_run(tmp_path / "long", steps=8000, evals=False, samples=False)
    assert report.write_report(long).stat().st_size < 1_000_000


def test_current_until_an_input_changes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=20)
    assert not report.report_is_current(run)
    report.write_report(run)
    assert report.report_is_current(run)
    (run / "checkpoints" / "unrelated.bin").write_bytes(b"x")
    assert report.report_is_current(run)
    images = ("evals/drawn.png", "evals/examples/003.png", "samples/final/00007.png", "samples/step-00000200.json")
    for changed in ("metrics.jsonl", "config.yaml", "environment.json", "evals/vqa.json", *images):
        path = run / changed
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        assert not report.report_is_current(run), changed
        path.write_bytes(before)
        assert report.report_is_current(run), changed
    (run / "samples" / "final" / "00003.png").unlink()
    assert not report.report_is_current(run)


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=30, evals=False, samples=False)
    text = " ".join(Page(report.write_report(run)).text.split())
    for sentence in (
        "Questions have not been asked yet",
        "Generated images have not been judged yet",
        "No final images",
        "no periodic images",
    ):
        assert sentence in text, sentence
    assert "No held-out loss" in text and "no periodic evaluations" in text
    assert "not finished (stopped, or still running): 30 of 1,200 steps" in text


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl"])
def test_a_run_that_has_only_just_started(tmp_path: Path, kept: str) -> None:
    run = tmp_path / "r"
    run.mkdir()
    (run / kept).write_text(CONFIG if kept == "config.yaml" else "")
    text = " ".join(Page(report.write_report(run)).text.split())
    assert "no training step logged yet" in text and "Nothing has been measured yet" in text
    assert ("There is no config.yaml in this run." in text) == (kept == "metrics.jsonl")
    assert report.summary(run)["state"] == "not started"


def test_damaged_files_are_told_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=50)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole[: whole.rindex("tokens_per_second")])  # a kill in the middle of a line
    (run / "evals" / "t2i.json").write_text('{"right_color": 0.9')
    (run / "samples" / "final" / "00000.png").write_bytes(b"not an image")
    (run / "evals" / "examples" / "002.png").unlink()
    text = " ".join(Page(report.write_report(run)).text.split())
    assert "1 line of metrics.jsonl could not be read" in text and "t2i.json could not be read as JSON" in text
    assert "1 more could not be read" in text and "image not readable" in text
    assert report.summary(run)["step"] == 49


def test_numbers_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=3, evals=False, samples=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 4, "tokens": 65536, "loss": NaN, "loss/text": null, "grad_norm": Infinity, '
            '"tokens_per_second": 8192.0}\n'
        )
    head = report.summary(run)
    assert head["step"] == 4 and math.isfinite(head["loss"]) and head["train_seconds"] == pytest.approx(8.0)
    Page(report.write_report(run))


def test_text_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>"
    run = make_run(tmp_path / "r", steps=10)
    (run / "config.yaml").write_text(CONFIG.replace("name: quickstart", f'name: "{evil}"'))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    (run / "samples" / "final" / "index.jsonl").write_text(
        json.dumps({"file": "00000.png", "prompt": f'"{evil}'}) + "\n"
    )
    vqa = json.loads((run / "evals" / "vqa.json").read_text())
    vqa["examples"][0] |= {"question": evil, "answer": evil, "truth": evil}
    (run / "evals" / "vqa.json").write_text(json.dumps(vqa))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 10, "loss": 2.0, f"loss/{evil}": 2.0, "loss/a$b$_{": 1.0, f"val/loss/{evil}": 1.0})
            + "\n"
        )
    page = Page(report.write_report(run))
    assert "script" not in page.tags and page.open == []
    assert page.text.count(evil) >= 7 and "a$b$_{" in page.text


def test_a_sample_index_cannot_pull_in_files_from_elsewhere(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = make_run(tmp_path / "r", steps=5)
    (run / "samples" / "final" / "index.jsonl").write_text(
        json.dumps({"file": "../../../secret.png", "prompt": "x"}) + "\n"
    )
    assert "None of the 1 images" in Page(report.write_report(run)).text


def test_large_images_are_made_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=5, evals=False)
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(run / "samples" / "final" / "00000.png")
    html = report.write_report(run).read_text()
    assert len(html) < 1_000_000 and 'width="384" height="384"' in html


def test_summary_has_the_headline_numbers(full_run: Path) -> None:
    head = report.summary(full_run)
    assert (head["state"], head["step"], head["planned_steps"], head["tokens"]) == (
        "finished",
        1200,
        1200,
        1200 * 16384,
    )
    assert head["train_seconds"] == pytest.approx(2400) and head["tokens_per_second"] == pytest.approx(8192)
    assert head["heldout"]["step"] == 1200 and set(head["heldout"]["loss"]) == set(TASKS)
    assert head["vqa"]["rows"][0] == {
        "name": "all",
        "count": 9673,
        "accuracy": 0.8721,
        "blind": 0.6703,
        "shuffled": 0.6651,
    }
    assert head["vqa"]["rows"][2] == {
        "name": "shape",
        "count": 1483,
        "accuracy": 0.742,
        "blind": 0.348,
        "shuffled": None,
    }
    assert head["vqa"]["rows"][3] == {
        "name": "yes/no",
        "count": 6669,
        "accuracy": 0.874,
        "blind": 0.861,
        "shuffled": 0.857,
    }
    assert head["t2i"]["right_shape"] == 0.571 and "prompts" not in head["t2i"]
    assert head["checkpoints"] == ["step-00000600", "step-00001200"] and head["report"] == str(full_run / "report.html")


def printed(function, argument: Path) -> str:  # type: ignore[no-untyped-def]
    console = Console(width=150, record=True, file=io.StringIO())
    function(argument, console)
    return console.export_text()


def test_printed_summary_ends_with_the_report(full_run: Path, tmp_path: Path) -> None:
    text = printed(report.print_summary, full_run)
    for shown in (
        "87.2%",
        "67.0%",
        "66.5%",
        "95.4%",
        "57.1%",
        "9",
        "3.419",
        "held-out loss, t2i",
        "1,200 of 1,200",
        "19.7 M",
        "40 min 00 s",
        "8,192",
    ):
        assert shown in text, shown
    assert text.rstrip().endswith(f"Report: {full_run / 'report.html'}")
    bare = printed(report.print_summary, make_run(tmp_path / "r", steps=2, evals=False, samples=False))
    assert "No evaluation of questions yet: liquid eval checkpoint=" in bare and "No report yet" in bare


def test_list_and_status(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one", steps=1200)
    make_run(tmp_path / "runs" / "sweep" / "[two]", steps=300, evals=False, samples=False)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "sweep" / "[two]" / "checkpoints" / "step-00000900").mkdir()  # never committed
    listed = printed(report.list_runs, tmp_path / "runs")
    assert (
        "one" in listed
        and "sweep/[two]" in listed
        and "finished" in listed
        and "unfinished" in listed
        and "notes" not in listed
    )
    shown = printed(report.status, tmp_path / "runs" / "sweep" / "[two]")
    for text in ("300 of 1,200 (25.0%)", "30 min 00 s", "step-00000600, step-00001200", "loss, vqa", "ago"):
        assert text in shown, text
    assert "step-00000900" not in shown
    assert "No runs in" in printed(report.list_runs, tmp_path / "runs" / "notes")


@pytest.mark.parametrize("function", [report.write_report, report.summary, report.print_summary, report.status])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="not a run"):
        function(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        function(tmp_path / "absent")
    with pytest.raises(ValueError, match="no such folder"):
        report.list_runs(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_neither_torch_nor_transformers_is_imported(full_run: Path) -> None:
    code = f"""
import sys
from liquid_train.report import html as report
run = {str(full_run)!r}
assert report.report_is_current(run) and "matplotlib" not in sys.modules
report.write_report(run)
report.print_summary(run)
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_page_is_written_again_when_its_version_or_a_shown_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: x}\n")
    before = report.inputs_digest(tmp_path)
    assert report.inputs_digest(tmp_path) == before
    monkeypatch.setattr(report, "VERSION", report.VERSION + 1)
    assert report.inputs_digest(tmp_path) != before
    monkeypatch.undo()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert report.inputs_digest(tmp_path) != before
