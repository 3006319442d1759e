"""JSON files: read, or refused with the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquid_train.errors import UserError
from liquid_train.files import check_folder, read_json


def test_json_is_read_or_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_json(path)
    path.write_text('{"key": ["ü", null]}', encoding="utf-8")
    assert read_json(path) == {"key": ["ü", None]}
    for broken in (b"{", b"", b'"\xff"'):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="x.json: not JSON"):
            read_json(path)


def test_a_url_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/run", "gs://bucket", "https://host/run", "file:///run"):
        with pytest.raises(UserError, match=f"run.dir={url}: a URL, and this is written to a folder only"):
            check_folder(Path(url), f"run.dir={url}")
    check_folder(tmp_path / "s3:" / "run", "run.dir=...")
    assert not list(tmp_path.iterdir())
