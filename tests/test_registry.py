"""Kinds by name and by import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from liquid_train.errors import UserError
from liquid_train.registry import Registry


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[type]:
    """A package of two kinds, one of which must not be imported unasked, and a module of a user's own."""
    package = tmp_path / "some_kinds"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from liquid_train.registry import Registry\nKINDS = Registry('some_kinds', 'kind')\n"
    )
    (package / "good.py").write_text("from some_kinds import KINDS\n@KINDS.register('good')\nclass Good: ...\n")
    (package / "broken.py").write_text("raise RuntimeError('imported unasked')\n")
    (package / "_shared.py").write_text("")
    (tmp_path / "my_own.py").write_text("class Mine: ...\n")
    (tmp_path / "lacking.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.startswith("some_kinds") or n == "my_own"]:
        monkeypatch.delitem(sys.modules, name)
    import some_kinds  # type: ignore[import-not-found]

    found: Registry[type] = some_kinds.KINDS
    return found


def test_a_file_is_a_kind_and_only_the_one_asked_for_is_imported(kinds: Registry[type]) -> None:
    assert kinds.names() == ["broken", "good"]
    assert kinds.find("good", "key").__name__ == "Good"


def test_a_kind_of_ones_own_by_import_path(kinds: Registry[type]) -> None:
    assert kinds.find("my_own.Mine", "key").__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("goood", "a.b=goood: no such kind; one of broken, good, or the import path"),
        ("my_own.Other", "a.b=my_own.Other: module my_own has no Other"),
        ("nowhere.Mine", "a.b=nowhere.Mine: no module nowhere; its folder must be on PYTHONPATH"),
    ],
)
def test_what_is_no_kind_is_told_with_key_and_remedy(kinds: Registry[type], name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        kinds.find(name, "a.b")


def test_a_users_module_that_lacks_a_package_keeps_its_traceback(kinds: Registry[type]) -> None:
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        kinds.find("lacking.Kind", "key")
