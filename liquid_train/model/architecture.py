"""Whether transformers can build and run what `backbone.architecture`, or a folder's config.json, describes.

transformers checks the types of a config's fields and little more: it keeps fields that it does not know, and what does
not fit together fails in the middle of a forward pass. So the fields are compared with those of the model type, and two
blocks of the model run a few tokens on the meta device, which computes shapes alone.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from liquid_train.config.explain import nearest
from liquid_train.config.text import as_text
from liquid_train.errors import UserError
from liquid_train.model.shrink import meta_model

KEY = "backbone.architecture"
SHAPES = "liquid_shapes"  # attention for the meta device, registered below
BLOCKS = 2  # that are run: enough for Gemma's two kinds, and a model of 64 blocks takes no longer
LONGEST = 200  # characters of what transformers says
# fields that count something of which there must be one at least
SIZES = re.compile(r"(_size|_dim|_layers|_heads|_embeddings)$|^n_(embd|head|layer|positions)$")
REFUSED = (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError, ArithmeticError, ImportError)


def config_of(fields: dict[str, Any]) -> PreTrainedConfig:
    """The transformers config of a model type and its fields. Raises UserError for a type or field that transformers
    does not know, and for a value that cannot be."""
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        close = nearest(model_type, CONFIG_MAPPING) if isinstance(model_type, str) else ""
        raise UserError(
            f"{KEY}.model_type={as_text(model_type)}: transformers has no such model{close or '; give qwen2 or llama'}"
        )
    # a copy: transformers completes what is inside, and a config that was changed so is refused at the next resume
    given = {name: copy.deepcopy(value) for name, value in fields.items() if name != "model_type"}
    for name, value in given.items():
        _check_number(name, value)
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **given)
    except REFUSED as error:
        if not is_transformers_own(CONFIG_MAPPING[model_type]) and not isinstance(error, StrictDataclassError):
            raise  # of the user's own, which may have a bug
        raise UserError(_refused(error, given)) from error
    known = _fields_of(config)
    for name in given:
        # what is not kept was understood: rope_theta becomes a part of rope_parameters
        if name.startswith("_") or (name not in known and name in vars(config)):
            raise UserError(f"{KEY}.{name}: {model_type} has no such field{nearest(name, known)}")
    return config


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if value < 0 or (value == 0 and SIZES.search(name)):
        least = "1 or more" if SIZES.search(name) else "0 or more"
        raise UserError(f"{KEY}.{name}={value}: must be {least}")
    if value and "drop" in name:
        raise UserError(f"{KEY}.{name}={value}: training here has no dropout; give 0.0")


def _fields_of(config: PreTrainedConfig) -> set[str]:
    kind = type(config)
    named = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    # head_dim: read by the attention of models whose config does not declare it
    return {*named, *config.attribute_map, "head_dim", *(named or kind().to_dict())}


def is_transformers_own(kind: type) -> bool:
    """Whether a config's class is one of transformers, not a user's."""
    return kind.__module__.startswith("transformers.")


def _refused(error: Exception, given: dict[str, Any]) -> str:
    """In one line, with the field where the message names one of those that were given."""
    reason = _last_line(error)
    field = next((name for name in re.findall(r"\w+", str(error)) if name in given), None)
    where = f"{KEY}.{field}={as_text(given[field])}" if field else KEY
    return f"{where}: {reason}"


def _last_line(error: Exception) -> str:
    """What an error says in the end, cut at LONGEST characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shorten(re.sub(r"^\w+Error: ", "", lines[-1].strip()), LONGEST, placeholder=" ...")


def check_model(config: PreTrainedConfig, key: str) -> None:
    """Build the model on meta and run a few tokens through two of its blocks. Raises UserError, which begins with
    `key`, where that cannot be done; an architecture of the user's own keeps its traceback."""
    if not is_transformers_own(type(config)):
        return
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{key}: transformers has no causal language model of the type {config.model_type}")
    _check_heads(config, key)
    try:
        model = meta_model(config, attn_implementation=SHAPES, experts_implementation="eager")
        if not isinstance(getattr(getattr(model, "model", None), "layers", None), nn.ModuleList):
            raise UserError(
                f"{key}: {config.model_type} keeps its blocks elsewhere than in model.layers, where they are sharded; "
                "choose another model type"
            )
        del model.model.layers[BLOCKS:]
        ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
        with torch.no_grad():
            model.model(input_ids=ids, position_ids=ids, use_cache=False)
    except UserError:
        raise
    except NotImplementedError:
        return  # an operation that the meta device lacks
    except KeyError as error:
        raise UserError(f"{_field_with(config, error, key)}: transformers does not know that value") from error
    except (RuntimeError, IndexError, *REFUSED) as error:
        raise UserError(f"{key}: a model of these sizes cannot be run: {_last_line(error)}") from error


def _field_with(config: PreTrainedConfig, error: KeyError, key: str) -> str:
    """KEY.FIELD=VALUE of the field whose value transformers looked up in vain."""
    value = error.args[0] if error.args else None
    for name, held in config.to_dict().items():
        if value == held or (isinstance(held, dict) and value in held.values()):
            return f"{key}.{name}={as_text(held)}"
    return f"{key}: {as_text(value)}"


def _check_heads(config: PreTrainedConfig, key: str) -> None:
    values = config.to_dict()  # an attribute may be one of each layer, which cannot be asked for
    width, heads, pairs = (values.get(f) for f in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if not (isinstance(width, int) and isinstance(heads, int) and heads):
        return
    if values.get("head_dim") is None and width % heads:
        raise UserError(f"{key}: hidden_size={width} does not divide by num_attention_heads={heads}")
    if values.get("head_dim") is None and values.get("rope_parameters") and width // heads % 2:
        raise UserError(
            f"{key}: hidden_size={width} / num_attention_heads={heads} is odd, and rotary positions turn pairs; choose "
            "sizes with an even quotient"
        )
    if isinstance(pairs, int) and pairs and heads % pairs:
        raise UserError(f"{key}: num_attention_heads={heads} does not divide by num_key_value_heads={pairs}")


def _shapes(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Attention of the right shapes: query [n, heads, seq_len, head_dim] -> [n, seq_len, heads, head_dim]. Without a
    mask, whose making reads values."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return (query @ key.transpose(2, 3) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHAPES, _shapes)
