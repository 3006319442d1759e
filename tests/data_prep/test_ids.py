"""Rows that are token ids already: from jsonl and parquet into a set, its checks, and the text task that reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.tools.command import main as data_tool
from liquid_train.data.mixture import SourceReader
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.vocabulary import add_image_tokens, load_tokenizer, text_fingerprint, train_bpe
from tests.source_files import jsonl, run

TEXTS = ["hello world, hello you", "a b c d e", "another one"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS * 3, 290, folder)
    loaded = load_tokenizer(folder)
    loaded.folder = folder
    return loaded


def reader(shards: ShardSet, tokenizer: Any) -> SourceReader:
    data = DataConfig({"a": SourceConfig(str(shards.path), "text")}, {}, seq_len=64)
    return SourceReader("a", data.sources["a"], shards, tokenizer, data, 1, 0)


def make(tmp_path: Path, tokenizer: Any, rows: list[Any], *overrides: str) -> ShardSet:
    jsonl(tmp_path / "ids.jsonl", [{"input_ids": row} for row in rows])
    found: ShardSet = run(
        tmp_path, [], "ids", tmp_path / "ids.jsonl", f"tokenize.tokenizer={tokenizer.folder}", *overrides
    )
    return found


def test_ids_make_the_documents_that_their_text_makes(tmp_path: Path, tokenizer: Any) -> None:
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[bos, *ids[0], eos, *ids[1], eos, pad, pad], ids[2]]
    bad = [[], "text", None, [1.5], [True], [-1], [len(tokenizer)], [eos, eos]]
    shards = make(tmp_path, tokenizer, [*rows, *bad], "tokenize.max_bad=0.9")
    assert [sample["key"] for sample in shards] == ["000000000-0", "000000000-1", "000000001"]
    assert all(sample["ids"].dtype == np.uint32 and "text" not in sample for sample in shards)
    assert shards.index["dropped"] == {
        "no token ids": 4,
        "ids that are no whole numbers": 2,
        "an id beyond the tokenizer's": 2,
    }
    assert shards.index["totals"]["text_ids"] == sum(map(len, ids))
    jsonl(tmp_path / "text" / "t.jsonl", [{"text": text} for text in TEXTS])
    as_text = run(tmp_path / "text", [], "text", tmp_path / "text" / "t.jsonl")
    made, expected = (
        Counter(tuple(document.ids.tolist()) for document in reader(s, tokenizer).first(3)) for s in (shards, as_text)
    )
    assert made == expected and len(made) == 3
    assert data_tool(["verify", str(shards.path), "--input", str(tmp_path / "ids.jsonl"), "--tokenizer",
                      str(tokenizer.folder)]) == 0  # fmt: skip
    assert data_tool(["describe", str(shards.path)]) == 0


def test_ids_in_parquet(tmp_path: Path, tokenizer: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"tokens": [[5, 6, 7], [8, 9]]}), tmp_path / "a.parquet")
    shards = run(tmp_path, [], "ids", tmp_path / "a.parquet", f"tokenize.tokenizer={tokenizer.folder}")
    assert [sample["ids"].tolist() for sample in shards] == [[5, 6, 7], [8, 9]]


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    shards = make(tmp_path, tokenizer, [[40, 41]])
    other = train_bpe(["quite other words, and more of them"] * 3, 290, tmp_path / "other")
    with pytest.raises(UserError, match=r"data.sources.a.path=.*: token ids of another tokenizer: fingerprint"):
        reader(shards, other)
    with pytest.raises(UserError, match=r"tokenize.tokenizer has no value"):
        run(tmp_path / "b", [], "ids", tmp_path / "ids.jsonl")


def test_a_tokenizer_with_other_special_tokens_is_the_same(tmp_path: Path, tokenizer: Any) -> None:
    """Training renames three unused entries to <boi>, <eoi> and <unconditional>."""
    renamed = tmp_path / "renamed"
    tokenizer.save_pretrained(renamed)
    for file in renamed.glob("*.json"):
        file.write_text(file.read_text().replace("<boi>", "<unused0>").replace("<eoi>", "<unused1>"))
    before = load_tokenizer(renamed)
    assert text_fingerprint(before) == text_fingerprint(tokenizer)
    after = add_image_tokens(renamed, tmp_path / "after", ["<unused0>", "<unused1>", "<unconditional>"])
    assert text_fingerprint(after) == text_fingerprint(tokenizer)


def test_an_image_token_among_the_ids_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    shards = make(tmp_path, tokenizer, [[40, tokenizer.get_added_vocab()["<boi>"]], [40, 41]])
    read = reader(shards, tokenizer)
    assert len(read.first(2)) == 1 and read.dropped == {"an image token among the ids of a text": 1}
