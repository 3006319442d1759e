"""How a setting is declared: its type, default, bounds, choices and help stand in one place, the dataclass of the
module that owns it.

    @dataclass
    class OptimizerConfig(Section):
        lr: Annotated[float, setting("peak learning rate", gt=0)] = 1e-3
        kind: Annotated[str, setting("which optimizer", kinds="liquid_train.optim:OPTIMIZERS")] = "adamw"

pydantic reads these annotations when a config is loaded (compose.py): it is made for typed settings, and gives the
key and the value of everything that is wrong at once. Built in Python, a section is a plain dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from liquid_train.errors import UserError
from liquid_train.registry import Registry

MISSING = "???"  # the default of a setting that must be given, as in Hydra's own configs


@dataclass
class Section:
    """Base of all sections: no unknown keys, no NaN; a number is taken where text is wanted (`run.name=2024` in a yaml
    file).

    kind_key: the setting that names the section's kind, which `_target_` in a config stands for; options_key: where the
    other keys that stand next to `_target_` go, as the arguments of a user's own kind.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )
    kind_key: ClassVar[str] = "kind"
    options_key: ClassVar[str] = "options"

    def check(self, key: str) -> None:
        """What must hold between the settings of this section; `key`: its dotted name, with a dot at the end.

        Raises UserError with the key, the value and what would be right.
        """


def setting(
    help: str, *, null: str | None = None, kinds: str | None = None, is_path: bool = False, **bounds: Any
) -> Any:
    """Help text and bounds (gt, ge, lt, le, min_length, max_length, as pydantic names them) of one setting.

    null: what `null` means, for a setting that may be null. kinds: "module:REGISTRY" that the text must be a name of.
    is_path: an empty text is refused.
    """
    extra = {"null": null, "kinds": kinds, "is_path": is_path}
    return Field(description=help, json_schema_extra={k: v for k, v in extra.items() if v}, **bounds)


def registry(name: str) -> Registry[Any]:
    """The registry that `setting(kinds=...)` names; its module is imported."""
    module, _, attribute = name.partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, Registry)
    return found


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless condition holds."""
    if not condition:
        raise UserError(message)
