"""Activation checkpointing and torch.compile of a block, together."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, Qwen2Config

from liquid_train.data.document_plan import DocumentPlan
from liquid_train.distributed.recompute import compiled_graphs, recompute_and_compile
from liquid_train.distributed.settings import ParallelConfig
from liquid_train.model.attention import PADDED_SDPA, implementation

BATCHES = ([10, 22], [5, 9, 18], [32], [1, 31], [16, 16], [2, 3, 4, 23])  # documents' lengths
CHECKPOINTS = ("none", "selective", "full")
CONFIG = Qwen2Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=100,
)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Instead of the compiler, which takes minutes: the graphs that dynamo finds are run as they are."""
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile, backend=counter))
    torch.compiler.reset()
    counters.clear()
    return counter


def blocks(kernel: str, device: str, *, one_graph: bool, **options: Any) -> nn.ModuleList:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation=implementation(kernel))
    layers: nn.ModuleList = model.model.layers
    for block in layers:
        recompute_and_compile(block, ParallelConfig(**options), one_graph=one_graph)
    return layers


def run(layers: nn.ModuleList, lengths: list[int], device: str) -> tuple[Tensor, Tensor]:
    """The blocks' output [1, 32, 64] and the gradient of a weight."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 32, 64, generator=generator).to(device).requires_grad_()
    tables = torch.randn(2, 1, 32, 16, generator=generator).to(device).unbind(0)
    plan = DocumentPlan.from_lengths(lengths).to(torch.device(device))
    out = hidden
    for block in layers:
        out = block(out, position_embeddings=tables, attention_mask=None, use_cache=False, document_plan=plan)
    layers.zero_grad()
    out.square().sum().backward()
    first: Any = layers[0]
    return out.detach(), first.mlp.up_proj.weight.grad


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_block_is_one_graph_with_varlen(counter: CompileCounter, checkpoint: str) -> None:
    """On meta, where torch's kernel has shapes only: one graph for all blocks, one more once lengths have changed."""
    layers = blocks("varlen", "meta", one_graph=True, activation_checkpoint=checkpoint, compile=True)
    for lengths in BATCHES:
        run(layers, lengths, "meta")
    assert not counters["graph_break"] and 1 <= counter.frame_count <= 2


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_block_is_compiled_around_padded_attention(counter: CompileCounter, checkpoint: str) -> None:
    plain = blocks(PADDED_SDPA, "cpu", one_graph=False)
    layers = blocks(PADDED_SDPA, "cpu", one_graph=False, activation_checkpoint=checkpoint, compile=True)
    for lengths in BATCHES:
        for found, wanted in zip(run(layers, lengths, "cpu"), run(plain, lengths, "cpu"), strict=True):
            torch.testing.assert_close(found, wanted)
    assert 2 <= counter.frame_count <= 4 and compiled_graphs() == counter.frame_count
