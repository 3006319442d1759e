"""What is special about families of language models, one file a family, named by transformers' model_type.

A model without a file here takes the general path: transformers' own forward pass for generation, soft-capping where
its config states some, and <boi> <eoi> <unconditional> in place of the first unused tokenizer entries that any family
names. A family of your own is a subclass of Family; backbone.family names it by its import path. Its module may also
register an architecture of your own with transformers.AutoConfig and AutoModelForCausalLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from liquid_train.errors import UserError
from liquid_train.registry import Registry

if TYPE_CHECKING:  # it takes most of a second, and a tokenizer is looked at without it
    from transformers import PreTrainedConfig

Triple = tuple[str, str, str]


class Family:
    """The general path; a family's file says what differs."""

    # unused tokenizer entries that become <boi> <eoi> <unconditional>: the first three that a tokenizer has
    special_tokens: ClassVar[tuple[Triple, ...]] = ()
    norms_add_one: bool = False  # RMSNorm multiplies by 1 + weight, in fp32: weights start at 0
    attention_sinks: ClassVar[bool] = False  # a learned score without a value stands in each head's softmax
    norms_after: ClassVar[bool] = False  # attention and MLP have a norm after them too
    # generate/fused_decode.py computes what the model does: Llama's block, with biases or not, and the norms as above
    fused_decode: ClassVar[bool] = False

    def attention_softcap(self, config: PreTrainedConfig) -> float | None:
        """Attention scores s become cap * tanh(s / cap); None: they stay."""
        return getattr(config, "attn_logit_softcapping", None)

    def logit_softcap(self, config: PreTrainedConfig) -> float | None:
        """The same of the head's logits."""
        return getattr(config, "final_logit_softcapping", None)

    def logit_scale(self, config: PreTrainedConfig) -> float:
        """What the head's logits are multiplied by: Cohere's logit_scale, one over Granite's logits_scaling."""
        factor, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
        return float(factor) / float(divisor)


FAMILIES: Registry[type[Family]] = Registry("liquid_train.model.families", "backbone family")

_chosen: dict[str, type[Family]] = {}  # model_type -> what backbone.family names for it, in this process


def find_family(name: str, key: str) -> type[Family]:
    """The family that the config key `key` names; its module is imported. UserError where it names none."""
    kind = FAMILIES.find(name, key)
    if not (isinstance(kind, type) and issubclass(kind, Family)):
        raise UserError(f"{key}={name}: not a subclass of liquid_train.model.families.Family")
    return kind


def use_family(model_type: str, family: type[Family]) -> None:
    """Let models of this type be of that family from here on, in this process."""
    _chosen[model_type] = family


def family_of(model_type: str) -> Family:
    """The family of a model."""
    if model_type in _chosen:
        return _chosen[model_type]()
    if model_type in FAMILIES.names():
        return FAMILIES.find(model_type, "model_type")()
    general = Family()
    general.norms_add_one = "gemma" in model_type  # as in Gemma itself, so in what was made of it
    return general


def special_token_triples(first: Family | None) -> list[Triple]:
    """Unused tokenizer entries to look for, in this order: those of the family `first`, then those of all others."""
    others = [FAMILIES.find(name, "model_type")() for name in FAMILIES.names()]
    return [triple for family in ([first] if first else []) + others for triple in family.special_tokens]
