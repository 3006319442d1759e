"""How a kind is found: by the name of its file in a package of kinds, or by the import path of a user's own.

    TASKS = Registry("liquid_train.data.tasks", "task")        in the package's __init__.py
    @TASKS.register("t2i")                                     in liquid_train/data/tasks/t2i.py
    TASKS.find("t2i", "data.sources.a.task")                   imports that file, and only that one
    TASKS.find("my_package.rhymes.Rhyme", ...)                 a user's own: module and attribute, as Hydra's `_target_`

So a new kind is one file: no list of names is kept anywhere, and nothing is imported that is not used.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Generic, TypeVar

from liquid_train.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Kinds of one thing. package: the one whose modules are the kinds (those with a leading underscore are not)."""

    def __init__(self, package: str, what: str) -> None:
        self.package, self.what = package, what
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: registers the decorated object as the kind `name`."""

        def add(kind: T) -> T:
            self._known[name] = kind
            return kind

        return add

    def names(self) -> list[str]:
        """Names of the package's kinds, sorted; no kind is imported for it."""
        spec = find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None, self.package
        found = {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)}
        return sorted(name for name in found if not name.startswith("_"))

    def find(self, name: str, key: str) -> T:
        """The kind that the config key `key` names. UserError for none, and for a path that leads nowhere."""
        if name not in self._known and name in self.names():
            import_module(f"{self.package}.{name}")
        if name in self._known:
            return self._known[name]
        if "." in name:
            return self._imported(name, key)
        own = "or the import path of your own, such as my_module.MyClass (docs/extending.md)"
        raise UserError(f"{key}={name}: no such {self.what}; one of {', '.join(self.names())}, {own}")

    def _imported(self, path: str, key: str) -> T:
        module, _, attribute = path.rpartition(".")
        try:
            kind: T = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, and lacks a package of its own
            raise UserError(
                f"{key}={path}: no module {error.name}; its folder must be on PYTHONPATH, or the package installed"
            ) from error
        except AttributeError as error:
            if not hasattr(import_module(module), attribute):
                raise UserError(f"{key}={path}: module {module} has no {attribute}") from error
            raise
        return kind
