"""`liquid plan`: how many parameters a training config has and what one rank holds of them, before there is a cluster.

The model is built on the meta device and sharded by the very `parallelize` that training calls, under torch's fake
process group:
one process that takes itself for rank 0 of any number, and no memory for the weights.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it registers the backend "fake"
from transformers import PreTrainedTokenizerFast

from liquid_train.config.schema import PlanJob
from liquid_train.distributed.parallelize import World, parallelize
from liquid_train.distributed.settings import all_processes, degrees
from liquid_train.generate.backbone_proof import check_trainable
from liquid_train.image_tokenizer.opening import tokenizer_sizes
from liquid_train.model import backbone
from liquid_train.model.loss import LossModule
from liquid_train.optim.optimizer import parameter_groups, state_bytes
from liquid_train.vocabulary import Vocabulary, load_tokenizer


@dataclass(frozen=True)
class MemoryPlan:
    """parameters: of the untouched backbone, tied weights once; parameters_extended: with a row for each image code.

    Bytes are those of rank 0, which holds the most, between steps: weights, gradients, optimizer state.
    Gathered copies of a block, activations and logits come on top.
    """

    parameters: int
    parameters_extended: int
    vocabulary_rows: int
    ranks: int
    weights_bytes_per_rank: int
    gradients_bytes_per_rank: int
    optimizer_bytes_per_rank: int
    total_bytes_per_rank: int


def run(config: PlanJob) -> None:
    """Print the plan as JSON or as a table. Raises UserError where degrees, folders or VQ files do not fit."""
    plan = make_plan(config)
    if config.format == "json":
        print(json.dumps(asdict(plan), indent=2))
    else:
        Console().print(as_table(plan))


def make_plan(config: PlanJob) -> MemoryPlan:
    """Raises UserError where degrees, folders or VQ files do not fit, before a model is built."""
    ranks = world_size(config)
    settings = config.backbone
    card = backbone.start_card(settings)  # of a model that has image rows already
    codebook_size = tokenizer_sizes(config.vq).codebook_size if card is None else card.codebook_size
    entries = len(load_tokenizer(settings.tokenizer)) if settings.tokenizer else settings.tokenizer_size
    check_trainable(settings, backbone.check_backbone(settings))
    hf_config = backbone.model_config(settings, entries)
    text_rows = hf_config.vocab_size - (codebook_size if card else 0)
    tokenizer = stand_in_tokenizer(min(entries, text_rows))
    parameters = count(backbone.build(hf_config, Vocabulary(tokenizer, 0, text_rows)))
    vocabulary = Vocabulary(tokenizer, codebook_size, text_rows + codebook_size)
    lm = backbone.build(hf_config, vocabulary)
    parameters_extended = count(lm)
    root = LossModule.of(lm, vocabulary, config.loss)
    with fake_process_group(ranks, config.parallel.tensor) as world:
        parallelize(root, lm, config.parallel, world, root.separate_head())
        groups = [
            {**group, "params": [p.to_local() if isinstance(p, DTensor) else p for p in group["params"]]}
            for group in parameter_groups(lm, config.optimizer.weight_decay)
        ]
    local = [p for group in groups for p in group["params"]]
    weights = sum(p.numel() * p.element_size() for p in local)
    optimizer = state_bytes(groups, config.optimizer)
    return MemoryPlan(
        parameters,
        parameters_extended,
        vocabulary.rows,
        ranks,
        weights_bytes_per_rank=weights,
        gradients_bytes_per_rank=weights,  # of the parameters' own type, fp32
        optimizer_bytes_per_rank=optimizer,
        total_bytes_per_rank=2 * weights + optimizer,
    )


def world_size(config: PlanJob) -> int:
    """Ranks that the mesh's degrees multiply to. With parallel.shard=-1, what `liquid train` would start here:
    launch.nproc, or one a GPU, on launch.nodes machines.

    Raises UserError when the degrees do not multiply to launch.nproc, or to the devices of this machine.
    """
    p = config.parallel
    ranks = (
        p.replicate * p.shard * p.tensor
        if p.shard > 0 and config.launch.nproc == "auto"
        else all_processes(config.launch)
    )
    degrees(p, ranks)
    return ranks


def stand_in_tokenizer(entries: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many entries that mean nothing: a model's shape depends on nothing else."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(entries)}, unk_token="0"))
    )


@contextlib.contextmanager
def fake_process_group(ranks: int, tensor: int) -> Iterator[World]:
    """Stand as rank 0 of `ranks`; collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield World(0, ranks, torch.device("cpu"), tensor)
    finally:
        dist.destroy_process_group()


def count(model: nn.Module) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def as_table(plan: MemoryPlan) -> Table:
    table = Table(title=f"one of {plan.ranks:,} rank(s)")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("parameters", f"{plan.parameters:,}")
    table.add_row("parameters with image codes", f"{plan.parameters_extended:,}")
    table.add_row("vocabulary rows", f"{plan.vocabulary_rows:,}", end_section=True)
    for name in ("weights", "gradients", "optimizer", "total"):
        table.add_row(f"{name}, GiB a rank", f"{getattr(plan, f'{name}_bytes_per_rank') / 2**30:,.2f}")
    return table
