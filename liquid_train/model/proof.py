"""A proof, on this machine and for any architecture that transformers has, that training here computes what the model
says.

A shrunken copy with random weights (shrink.py) gets three short documents in one packed row, and each of them alone
through transformers' own forward pass. Then these must agree: the losses, the gradients, and the hidden states of a
document whether its neighbour changes or not. fp32 on the CPU; a second or two.
"""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from liquid_train.data.batch import MicroBatch, places_of
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.errors import UserError
from liquid_train.model.attention import PACKED
from liquid_train.model.loss import LossModule, head_options
from liquid_train.model.settings import LossConfig
from liquid_train.model.shrink import meta_model, shrunken

LENGTHS = (19, 11, 23)  # tokens of the documents; longer than every window of the copy
# Relative to the largest value, fp32: right models differ by up to 2e-5 (sums in another order through up to 6 blocks),
# wrong ones by 1e-2 and more.
TOLERANCE = 1e-3
IMAGE_ROWS = 16
MOST_PARAMETERS = 30_000_000  # of the copy; the largest of the 72 model types that pass has 4 million
# what transformers and torch raise for sizes that do not fit together and for inputs that a model does not take
REFUSALS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    ImportError,
    ArithmeticError,
    StrictDataclassError,
)


class Unproven(Exception):
    """What does not hold, in a few words."""


def small_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """The shrunken config, which transformers can build and run. Raises Unproven where there is none."""
    try:
        small = shrunken(config)
        small.vocab_size += IMAGE_ROWS  # as backbone.build does it: a second table, of the old size, is found out
        parameters = sum(p.numel() for p in meta_model(small).parameters())
        if parameters > MOST_PARAMETERS:
            raise Unproven(f"no small copy of it can be made: this one has {parameters:,} parameters")
        random_model(small, "eager")(input_ids=documents(small.vocab_size)[0][None], use_cache=False)
    except REFUSALS as error:
        raise Unproven(f"no small copy of it can be run: {in_short(error)}") from error
    return small


def random_model(config: PreTrainedConfig, attention: str, seed: int = 0) -> Any:
    """A model of the shrunken `config` whose every parameter matters: none is 0 or 1 throughout, as biases, norms and
    sinks are at first."""
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": torch.float32}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict()), **options)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter + 0.2 * noise)
    return model


def documents(vocabulary: int) -> list[Tensor]:
    """int64 [length] each."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, vocabulary, (n,), generator=generator) for n in LENGTHS]


def prove_training(config: PreTrainedConfig) -> float:
    """The largest relative difference that was found. config: shrunken. Raises Unproven with what does not hold."""
    theirs = random_model(config, "eager")
    apart = documents(config.vocab_size)
    logits = [theirs(input_ids=d[None], use_cache=False).logits[0, :-1] for d in apart]
    ours = random_model(config, PACKED)
    root = LossModule(ours, head_options(ours, config.vocab_size, LossConfig()))
    try:
        output = root(packed_row(apart))
    except (*REFUSALS, UserError) as error:
        raise Unproven(f"packed rows cannot be computed: {in_short(error)}") from error
    losses = torch.cat([F.cross_entropy(x, d[1:], reduction="none") for x, d in zip(logits, apart, strict=True)])
    found = differ(output.losses, losses, "the loss of packed documents is not that of separate ones")
    output.total.backward()
    losses.sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.grad is None and other.grad is None:
            continue
        if mine.grad is None or other.grad is None:
            raise Unproven(f"{name} is trained by packed documents or by separate ones, not by both")
        found = max(found, differ(mine.grad, other.grad, f"the gradient of {name} is another for packed documents"))
    return max(found, _prove_independence(root, apart))


def _prove_independence(root: LossModule, apart: list[Tensor]) -> float:
    other = [apart[0], (apart[1] % 7) + 1, apart[2]]
    with torch.no_grad():
        before, after = (root(packed_row(documents)).losses for documents in (apart, other))
    first, second = LENGTHS[0] - 1, LENGTHS[0] - 1 + LENGTHS[1] - 1
    kept = torch.cat([torch.arange(first), torch.arange(second, len(before))])
    return differ(after[kept], before[kept], "a document changes with its neighbour in the row")


def packed_row(apart: list[Tensor]) -> MicroBatch:
    """One row of documents, each predicted from its second token on."""
    ids = torch.cat(apart)[None]
    targets = torch.cat([torch.cat([d[1:], torch.tensor([-100])]) for d in apart])[None]
    positions = torch.cat([torch.arange(len(d)) for d in apart])[None]
    tasks = torch.where(targets == -100, -1, 0).to(torch.int8)
    weights = (targets != -100).float()
    plan = DocumentPlan.from_lengths([len(d) for d in apart])
    return MicroBatch(ids, targets, positions, tasks, weights, places_of(targets), plan)


def in_short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shorten(lines[-1], 200, placeholder=" ...")


def differ(mine: Tensor, other: Tensor, what: str) -> float:
    """The largest difference as a share of the largest value; Unproven where it is beyond rounding, or not finite."""
    scale = float(other.detach().abs().max()) + 1e-12
    share = float((mine.detach() - other.detach()).abs().max()) / scale
    if not share <= TOLERANCE:
        raise Unproven(f"{what} (they differ by {share:.1%} of the largest)")
    return share
