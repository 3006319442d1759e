"""Intervals, provenance, the file of a measurement, and two runs side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from liquid_train import cli
from liquid_train.measurement.intervals import bootstrap, mean_interval, wilson
from liquid_train.measurement.measurement import Measurement, Value, average, bare, file_name, share, write_measurement
from liquid_train.measurement.provenance import Provenance, arrays_digest, code_version, seeds_text, texts_digest
from liquid_train.report.compare import compare, differences, read_evaluations


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (880, 1000)])
def test_wilson_equals_scipy(right, n):
    expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(right, n)
    assert low < high and (low == 0.0) == (right == 0) and (high == 1.0) == (right == n)


def test_bootstrap_of_a_mean_is_seeded_and_near_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = mean_interval(values, seed=3)
    assert (low, high) == mean_interval(values, seed=3) != mean_interval(values, seed=4)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(
        values.mean() + half, abs=0.03
    )


def test_a_reflected_bootstrap_takes_the_bias_off():
    """0 of all items, about 18 of 50 resampled ones."""

    def missing(picked: np.ndarray) -> float:
        return float(50 - len(set(picked.tolist())))

    low, high = bootstrap(50, missing, seed=0)
    assert 10 < low < high < 26
    assert bootstrap(50, missing, seed=0, reflected=True) == (-high, -low)


def test_the_interval_of_a_mean_of_shares_stays_within_them():
    low, high = mean_interval([1.0] * 30 + [0.0], seed=0)
    assert 0 < low < high == 1.0


def test_values_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no item is left"):
        share([])
    with pytest.raises(ValueError, match="no item is left"):
        average([])
    assert share([True, False]).value == 0.5 and share(np.array([1, 1, 0, 0])).n == 4


def test_digests_tell_order_shape_and_borders():
    assert texts_digest(["ab", "c"]) != texts_digest(["a", "bc"]) != texts_digest(["bc", "a"])
    assert (
        arrays_digest([np.zeros((2, 3))])
        != arrays_digest([np.zeros((3, 2))])
        != arrays_digest([np.zeros((3, 2), np.float32)])
    )
    assert seeds_text([4, 5, 6]) == "4 to 6" and seeds_text([1, 3]) == "1, 3"
    assert code_version() == Provenance(n=1).code and code_version()[0].isdigit()


def written(folder: Path, step: int | None, value: float, **provenance) -> Path:
    values = {
        "vqa_accuracy": Value(value, 100, value - 0.05, value + 0.05, "Wilson 95%"),
        "distinct": bare(9.5, 24, "a count"),
    }
    return write_measurement(
        folder / "evals", "vqa", step, Measurement(values, Provenance(n=100, code="1", **provenance))
    )


def test_the_file_of_a_measurement(tmp_path):
    path = write_measurement(
        tmp_path,
        "x",
        12,
        Measurement({"bad": bare(math.nan, 3, "x")}, Provenance(n=3, seeds="0 to 2"), warnings=["Too few."]),
    )
    assert path.name == "step-00000012-x.json" == file_name("x", 12) and file_name("x", None) == "model-x.json"
    content = json.loads(path.read_text())
    assert content["values"]["bad"] == {"value": None, "n": 3, "low": None, "high": None, "interval": "none: x"}
    assert content["receipt"]["seeds"] == "0 to 2" and content["warnings"] == ["Too few."] and content["step"] == 12


def text_of(a: Path, b: Path, strict: bool = False) -> tuple[int, str]:
    console = Console(record=True, width=200)
    return compare(a, b, strict=strict, console=console), console.export_text()


def test_compare_shows_the_newest_numbers_of_both_and_what_differs(tmp_path):
    a, b = tmp_path / "first", tmp_path / "second"
    written(a, 10, 0.2, data="d" * 64)
    written(a, 20, 0.5, data="d" * 64, sampler={"guidance": 3.0})
    written(b, 30, 0.7, data="e" * 64, sampler={"guidance": 1.0})
    (b / "evals" / "step-00000040-vqa.json").write_text('{"name": "vqa"')  # cut off
    code, text = text_of(a, b)
    (row,) = (line for line in text.splitlines() if "vqa_accuracy" in line)
    assert (
        "0.5 [0.45, 0.55] n=100" in row and "0.7 [0.65, 0.75]" in row and "+0.2" in row and "apart" in row and code == 0
    )
    assert (
        "vqa: data: dddddddddddd | eeeeeeeeeeee" in text
        and 'vqa: sampler: {"guidance": 3.0} | {"guidance": 1.0}' in text
    )
    assert "step-00000040-vqa.json could not be read" in text
    assert text_of(a, b, strict=True)[0] == 2


def test_runs_that_were_measured_alike_pass_also_strictly(tmp_path):
    a, b = tmp_path / "first", tmp_path / "second"
    written(a, 10, 0.50)
    written(b, 20, 0.55)
    assert differences(read_evaluations(a), read_evaluations(b)) == []
    code, text = text_of(a, b, strict=True)
    assert code == 0 and "overlap" in text and "Not measured alike" not in text


def test_compare_on_the_command_line(tmp_path, capsys):
    a, b = tmp_path / "first", tmp_path / "second"
    written(a, 10, 0.5, seeds="0 to 9")
    written(b, 10, 0.5, seeds="0 to 8")
    assert cli.main(["run", "compare", str(a), str(b)]) == 0 and "seeds: 0 to 9 | 0 to 8" in capsys.readouterr().out
    assert cli.main(["run", "compare", str(a), str(b), "--strict"]) == 2
    assert cli.main(["run", "compare", str(a)]) == 2 and "two runs" in capsys.readouterr().err
    assert (
        cli.main(["run", "compare", str(a), str(tmp_path / "none")]) == 2
        and "no evaluations there" in capsys.readouterr().err
    )
    assert cli.main(["run", "status", str(a), str(b)]) == 2 and "takes one folder" in capsys.readouterr().err
