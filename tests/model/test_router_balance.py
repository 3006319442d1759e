"""The load-balancing loss of mixture-of-experts models: transformers' own, whatever the layout of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from liquid_train.cli import main
from liquid_train.data.batch import MicroBatch, places_of
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.errors import UserError
from liquid_train.model.attention import PACKED
from liquid_train.model.loss import HeadOptions, LossModule
from liquid_train.model.router_balance import balance, balance_routers
from liquid_train.model.settings import LossConfig
from tests.distributed.running import make_data, train

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    **EXPERTS,
}
LENGTH = 24


def model(kind: str, layers: int = 1, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, num_hidden_layers=layers, **SMALL, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=PACKED).float()


def batch_of(rows: int, padding: int = 0) -> MicroBatch:
    ids = torch.randint(1, 64, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    positions = torch.arange(LENGTH).repeat(rows, 1)
    inside = (torch.arange(LENGTH) < LENGTH - padding).repeat(rows, 1)
    return MicroBatch(
        ids,
        targets,
        positions,
        torch.zeros_like(ids).to(torch.int8),
        torch.ones(rows, LENGTH),
        places_of(targets),
        DocumentPlan.from_lengths([LENGTH] * rows),
        inside=inside,
    )


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "olmoe", "granitemoe"])
def test_the_gradients_are_those_of_the_models_own_loss(kind: str) -> None:
    """Of one layer and one row: there the two are the same."""
    lm = model(kind)
    row = batch_of(1)
    root = LossModule(lm, HeadOptions(64))
    root.balance = balance_routers(lm, LossConfig(router=0.5), rows=1, ranks=1)
    assert root.balance is not None
    root(row).total.backward()
    ours = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    value = float(root.balance.take(torch.device("cpu")))

    lm.zero_grad()
    root.balance._scale = 0.0
    lm.config.output_router_logits = True
    out = lm.model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        use_cache=False,
        document_plan=row.plan,
    )
    own = load_balancing_loss_func(out.router_logits, 4, 2)
    assert isinstance(own, Tensor)
    (root(row).total + 0.5 * own).backward()
    assert value == pytest.approx(float(own.detach()), rel=1e-5)
    for name, p in lm.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad, msg=name, atol=1e-6, rtol=1e-5)
    assert any("router" in name or "gate" in name for name in ours)


def test_padding_and_other_rows_do_not_count() -> None:
    logits = torch.randn(2 * LENGTH, 4, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(2, LENGTH, dtype=torch.bool)
    inside[1, 10:] = False
    alone = balance(logits[:LENGTH], inside[:1], 2) + balance(logits[LENGTH : LENGTH + 10], inside[:1, :10], 2)
    torch.testing.assert_close(balance(logits, inside, 2), alone)
    inside[1] = False
    torch.testing.assert_close(balance(logits, inside, 2), balance(logits[:LENGTH], inside[:1], 2))
    even = balance(torch.zeros(LENGTH, 4), inside[:1], 4)
    assert float(even) == pytest.approx(4), "k for a perfect balance"


def test_checkpoints_add_it_once() -> None:
    found = []
    for checkpointed in (False, True):
        lm = model("qwen3_moe", layers=2)
        if checkpointed:
            lm.activation_checkpointing_enable({"use_reentrant": False})
        lm.train()
        root = LossModule(lm, HeadOptions(64))
        root.balance = balance_routers(lm, LossConfig(router=1.0), rows=2, ranks=1)
        assert root.balance is not None
        root(batch_of(2, padding=3)).total.backward()
        gradient = lm.model.layers[0].mlp.gate.weight.grad
        assert gradient is not None
        found.append((float(root.balance.take(torch.device("cpu"))), gradient.clone()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_weight_needs_routers() -> None:
    dense = model("qwen2")
    assert balance_routers(dense, LossConfig(), rows=1, ranks=1) is None
    with pytest.raises(UserError, match=r"loss\.router=0\.1: qwen2 has no experts"):
        balance_routers(dense, LossConfig(router=0.1), rows=1, ranks=1)
    assert balance_routers(model("qwen3_moe"), LossConfig(router=0.0), rows=1, ranks=1) is None


def test_ranks_and_micro_batches_change_nothing(tmp_path: Path) -> None:
    """Losses, gradient norms and the balance itself, of a run in which it weighs as much as the loss."""
    root = make_data(tmp_path)
    fields = "{model_type: qwen3_moe, num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 16, head_dim: 16}"
    keys = [
        f"backbone.architecture={fields[:-1]}, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
        "num_attention_heads: 2, num_key_value_heads: 1}",
        "loss.router=1",
        "train.steps=4",
        "data.workers=0",
    ]
    layouts = {
        "one": ["launch.nproc=1", "train.micro_batch=4"],
        "accumulated": ["launch.nproc=1", "train.micro_batch=1"],
        "two": ["launch.nproc=2", "train.micro_batch=1", "parallel.activation_checkpoint=full"],
    }
    runs = {name: train(root, name, *keys, *more) for name, more in layouts.items()}
    for name in ("accumulated", "two"):
        for key in ("loss", "grad_norm", "router_balance"):
            assert [m[key] for m in runs[name]] == pytest.approx([m[key] for m in runs["one"]], rel=1e-4), (name, key)
    balances = [m["router_balance"] for m in runs["one"]]
    assert 2 <= balances[-1] < balances[0], "it is learned"


def test_a_weight_for_a_model_without_experts_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.shard_sets import mixture_overrides

    arguments = ["experiment=quickstart", *mixture_overrides(tmp_path), "launch.nproc=1", "loss.router=0.1"]
    assert main(["train", *arguments]) == 2
    assert "loss.router=0.1: qwen2 has no experts" in capsys.readouterr().err
