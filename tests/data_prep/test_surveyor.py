"""Rows are counted by all parts at once, each input once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from data_prep import tokenize
from data_prep.settings import TokenizeSettings
from data_prep.shard_set import surveyor
from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.plan import Part, SetPlan
from data_prep.shard_set.surveyor import Surveyor
from data_prep.source import Source, Survey
from data_prep.sources import open_source
from data_prep.sources.text import TextSource
from tests.data_prep.test_tokenize import content
from tests.source_files import config, jsonl

FILES = 7


@pytest.fixture
def settings(tmp_path: Path) -> TokenizeSettings:
    for number in range(FILES):
        jsonl(tmp_path / "in" / f"{number}.jsonl", [{"text": f"{number} {row}"} for row in range(number + 1)])
    return config("text", tmp_path / "in", f"tokenize.output={tmp_path / 'set'}", "tokenize.progress=false").tokenize


def counter(settings: TokenizeSettings, folder: SetFolder, part: Part, workers: int = 0) -> Surveyor:
    source: Source = open_source(settings, 0)
    return Surveyor(settings, 0, source, {"a": 1}, folder, part, workers)


EXPECTED = {f"{number}.jsonl": Survey(number + 1) for number in range(FILES)}


def test_processes_of_a_part_count_after_a_while(settings: TokenizeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveyor, "ALONE_SECONDS", 0.0)
    folder = SetFolder(settings.output)
    with folder.opened():
        assert counter(settings, folder, Part(0, 1), workers=2).survey() == EXPECTED


def test_what_is_counted_is_not_counted_again(settings: TokenizeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part stops in the middle; another goes on, from its own place and around."""
    counted: Counter[str] = Counter()

    def survey(source: TextSource, name: str) -> Survey:
        counted[name] += 1
        if sum(counted.values()) == 4:
            raise KeyboardInterrupt
        return Survey(int(name[0]) + 1)

    monkeypatch.setattr(TextSource, "survey", survey)
    folder = SetFolder(settings.output)
    with folder.opened():
        with pytest.raises(KeyboardInterrupt):
            counter(settings, folder, Part(1, 3)).survey()
        assert counter(settings, SetFolder(settings.output), Part(0, 3))._known(()) == {
            n: Survey(n + 1) for n in (2, 3, 4)
        }
        assert counter(settings, folder, Part(0, 3)).survey() == EXPECTED
    assert counted == Counter({**dict.fromkeys(EXPECTED, 1), "5.jsonl": 2})


def test_counts_of_another_source_are_not_taken(settings: TokenizeSettings) -> None:
    folder = SetFolder(settings.output)
    with folder.opened():
        for number in range(FILES):
            told = {"source": "another", "rows": 99, "omitted": {}, "damage": None}
            (folder.partial / f"rows-{number:06d}.json").write_text(json.dumps(told) if number else "{")
        assert counter(settings, folder, Part(0, 1)).survey() == EXPECTED


def test_a_part_waits_for_what_another_counts(settings: TokenizeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are of processes; here a claim that is refused stands for another part's."""
    monkeypatch.setattr(surveyor, "PAUSE", 0.01)
    monkeypatch.setattr(SetFolder, "claim_input", lambda folder, number: number != 3)
    folder = SetFolder(settings.output)
    with folder.opened():
        other = counter(settings, folder, Part(1, 2))
        threading.Timer(0.2, other._write, (3, Survey(4))).start()
        assert counter(settings, folder, Part(0, 2)).survey() == EXPECTED


def test_a_job_that_fails_leaves_nothing_where_nobody_else_counts(
    settings: TokenizeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = TextSource.survey

    def broken(source: TextSource, name: str) -> Survey:
        if name == "5.jsonl":
            raise RuntimeError("a bug")
        return survey(source, name)

    call = config("text", tmp_path / "in", f"tokenize.output={settings.output}", "tokenize.progress=false")
    with monkeypatch.context() as patched:
        patched.setattr(TextSource, "survey", broken)
        with pytest.raises(RuntimeError):
            tokenize.run(call)
    assert not Path(settings.output).exists()
    tokenize.run(call)
    assert "index.json" in content(Path(settings.output))


@pytest.mark.parametrize("rows", [[0], [1], [2], [3, 5], [0, 1, 2, 3, 4, 5], [5]])
def test_single_rows_of_several_inputs_are_read(settings: TokenizeSettings, rows: list[int]) -> None:
    """Of rows 0 | 1 2 | 3 4 5, which three files hold: the first of a file is not looked for in the one before."""
    plan = SetPlan({"shard_size": 2}, [[f"{number}.jsonl", number + 1] for number in range(3)], None, {})
    texts = ["0 0", "1 0", "1 1", "2 0", "2 1", "2 2"]
    found = [(row, item.text) for row, item in plan.read_rows(open_source(settings, 0), rows)]
    assert found == [(row, texts[row]) for row in rows]
