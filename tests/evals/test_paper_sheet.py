"""evals=paper: the numbers next to those of the paper, what was not given, and pages that need nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evals.paper.numbers import GROUPS, MODELS
from evals.paper.sheet import SHEETS, write_sheet
from evals.run import run
from liquid_train.cli import main
from liquid_train.config.compose import load
from liquid_train.measurement.measurement import Measurement, Value, bare, share
from liquid_train.measurement.provenance import Provenance
from tests import benchmark_sets
from tests.tiny_model import save


class Cells(HTMLParser):
    """The rows of all tables, and every address the page loads something from."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag in ("b", "span"))
        self.loaded += [value for name, value in attrs if name in ("src", "href") and tag != "a" and value != "data:,"]

    def handle_endtag(self, tag):
        if tag in ("td", "th", "tr"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def markdown_rows(text: str) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows if row[0] and row[0] != "---"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save(tmp_path_factory.mktemp("model"), grid=(8, 8)))


def test_what_was_given_is_measured_and_the_rest_says_what_to_give(model, tmp_path, capsys):
    files = {
        "vqav2": benchmark_sets.vqav2(tmp_path / "vqav2"),
        "pope": benchmark_sets.pope(tmp_path / "pope"),
        "mme": benchmark_sets.mme(tmp_path / "mme"),
    }
    given = [f"benchmarks.{name}.{key}={path}" for name, own in files.items() for key, path in own.items()]
    call = [
        "eval",
        f"checkpoint={model}",
        "evals=paper",
        f"output={tmp_path / 'evals'}",
        "device=cpu",
        "benchmarks.max_new_tokens=2",
        "language.tasks=[]",
        *given,
    ]
    assert main(call) == 0
    out = tmp_path / "evals"
    rows = markdown_rows((out / "paper.md").read_text())
    measured = json.loads((out / "model-vqav2.json").read_text())["values"]["vqav2"]
    own, interval, n, *published, source, note = rows["VQAv2, accuracy %"]
    assert (
        own == f"{100 * measured['value']:.1f}"
        and interval == f"{100 * measured['low']:.1f} to {100 * measured['high']:.1f}"
        and n == "4"
    )
    assert published == ["–", "68.0", "71.3", "–", "–"] and source == "Table 6" and "here vqav2" in note
    assert rows["GQA, accuracy %"][0] == "not measured: give benchmarks.gqa.questions=..., benchmarks.gqa.images=..."
    assert rows["MJHQ-30K, FID (lower is better)"][0] == "not measured: give reference.folder=..., features.path=..."
    # some subtasks are not there
    assert rows["MME, perception (of 2,000)"][0] == "not measured: no mme/perception among its numbers"
    assert rows["OpenBookQA"][3:9] == ["not verified here"] * 6
    page = Cells((out / "paper.html").read_text())
    assert not page.loaded and [r for r in page.rows if r[0].startswith("VQAv2")][0][1] == own  # noqa: RUF015
    assert sum(len(row) > 1 and row[0] != "" for row in page.rows) == sum(map(len, GROUPS.values())) == len(rows)
    capsys.readouterr()
    assert main(call) == 0 and "nothing to do" in capsys.readouterr().out
    before = (out / "paper.html").read_bytes()
    assert main([*(o for o in call if o != "evals=paper"), "metrics=[pope]"]) == 0
    assert (out / "paper.html").read_bytes() == before  # other metrics do not take the sheet away


def test_a_metric_that_fails_leaves_the_others_on_the_sheet(model, tmp_path):
    files = benchmark_sets.pope(tmp_path / "pope")
    vqav2 = benchmark_sets.vqav2(tmp_path / "vqav2")
    next(Path(vqav2["images"]).iterdir()).write_bytes(b"no image")  # found out only when it is read
    given = [
        f"benchmarks.{name}.{key}={path}"
        for name, own in (("pope", files), ("vqav2", vqav2))
        for key, path in own.items()
    ]
    overrides = [
        f"checkpoint={model}",
        "sheet=paper",
        f"output={tmp_path / 'evals'}",
        "device=cpu",
        "benchmarks.max_new_tokens=2",
        "language.tasks=[]",
        *given,
    ]
    run(load("eval", overrides))
    rows = markdown_rows((tmp_path / "evals" / "paper.md").read_text())
    assert rows["VQAv2, accuracy %"][0].startswith("not measured: benchmarks.vqav2: 2 of 4 entries cannot be used")
    assert float(rows["POPE, F1 %, mean of the splits"][0]) >= 0 and rows["POPE, F1 %, mean of the splits"][1] == "–"


def test_numbers_are_shown_in_the_papers_units(tmp_path):
    provenance = Provenance(n=8, sampler={"guidance": 3.0}, features="<b>a|b</b>", code="1")
    found = {
        "reference_quality": Measurement(
            {"reference_quality/fid": Value(5.4712, 30000, 5.3, 5.6, "x")},
            provenance,
            warnings=["too few | <i>images</i>"],
        ),
        "mme": Measurement({"mme/perception": bare(1119.31, 2374, "points")}, provenance),
        "language": Measurement(
            {
                "language_all/arc_easy/acc": share([True] * 3 + [False]),
                "language_all/arc_easy/acc_norm": share([True, False]),
            },
            provenance,
        ),
    }
    write_sheet(tmp_path, "A | B", found, {})
    rows = markdown_rows((tmp_path / "paper.md").read_text())
    assert rows["MJHQ-30K, FID (lower is better)"] == [
        "5.47",
        "5.30 to 5.60",
        "30,000",
        "–",
        "5.47",
        "–",
        "–",
        "–",
        "Table 3",
        "here reference_quality/fid",
    ]
    assert rows["MME, perception (of 2,000)"][:3] == ["1,119.3", "–", "2,374"]
    assert rows["ARC easy"][0] == "50.0" and rows["ARC easy"][-1] == "here language_all/arc_easy/acc_norm"
    assert (
        rows["BoolQ"][0] == "not measured: no language_all/boolq/acc_norm or language_all/boolq/acc among its numbers"
    )
    page = (tmp_path / "paper.html").read_text()
    assert "<b>a|b" not in page and "<i>images" not in page and "&lt;b&gt;a|b" in page


def test_rows_belong_to_the_sheets_metrics_and_to_the_papers_models():
    rows = [row for group in GROUPS.values() for row in group]
    assert {row.metric for row in rows} == set(SHEETS["paper"])
    assert all(len(row.published) == len(MODELS) for row in rows) and all(
        any(row.published) == bool(row.table) for row in rows
    )


def test_a_sheet_takes_its_own_metrics_only(capsys):
    assert main(["eval", "checkpoint=x", "evals=paper", "metrics=[vqa]"]) == 2
    assert "metrics: vqa have no place on evals=paper" in capsys.readouterr().err
    assert main(["eval", "checkpoint=x", "evals=nothing"]) == 2
    assert "sheet=nothing: no such config; one of paper" in capsys.readouterr().err
    assert main(["eval", "checkpoint=x", "evals=[nothing]"]) == 2  # a list: metrics, as in metrics=[...]
    assert "metrics: nothing: no such metric" in capsys.readouterr().err
