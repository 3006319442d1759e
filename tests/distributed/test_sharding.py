"""What a rank holds and how often it talks, counted from outside: 1/N of the parameters, one gather and one reduction a
block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from liquid_train.data.batch import MicroBatch
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.distributed.parallelize import World, parallelize
from liquid_train.distributed.settings import ParallelConfig
from liquid_train.model.attention import PACKED
from liquid_train.model.loss import LossModule
from liquid_train.model.settings import LossConfig
from tests import forked
from tests.tiny_model import tiny

LENGTH = 32


def batch_of(rows: int) -> MicroBatch:
    ids = torch.arange(LENGTH).remainder(rows)[None]
    plain: dict[str, Any] = {
        "chosen": torch.arange(LENGTH),
        "tasks": torch.zeros(1, LENGTH, dtype=torch.int8),
        "weights": torch.ones(1, LENGTH),
    }
    return MicroBatch(
        ids, ids.roll(-1, 1), torch.arange(LENGTH)[None], **plain, plan=DocumentPlan.from_lengths([LENGTH])
    )


def rank_main(rank: int, ranks: int, folder: str, parallel: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    lm, vocabulary = tiny(Path(folder) / f"tokenizer-{rank}")
    lm.set_attn_implementation(PACKED)
    lm.train().requires_grad_(True)
    root = LossModule.of(lm, vocabulary, LossConfig())
    root.options = replace(root.options, vocabulary=parallel.pop("vocabulary", root.options.vocabulary))
    whole = sum(p.numel() for p in root.parameters())
    config = ParallelConfig(precision="fp32", **parallel)
    parallelize(root, lm, config, World(rank, ranks, torch.device("cpu"), config.tensor))
    local: int = sum(p.to_local().numel() for p in root.parameters())  # type: ignore[attr-defined]
    batch = batch_of(min(vocabulary.text_size, root.options.vocabulary))
    total = root(batch).total
    total.backward()  # the first one also sets FSDP up
    with CommDebugMode() as talk:
        root(batch).total.backward()
    counts = {str(op).split(".")[-1].strip("_"): n for op, n in talk.get_comm_counts().items()}
    Path(folder, f"rank-{rank}.json").write_text(
        json.dumps({"whole": whole, "local": local, "counts": counts, "loss": total.item()})
    )
    del root, lm
    dist.barrier()
    dist.destroy_process_group()


def spawn(folder: Path, ranks: int, **parallel: Any) -> list[dict[str, Any]]:
    forked.spawn(rank_main, (ranks, str(folder), parallel), nprocs=ranks)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def test_fsdp_gathers_and_reduces_each_group_once(tmp_path: Path) -> None:
    """Two blocks and the root. The first block is gathered again for its backward; the others stay whole from forward
    to backward."""
    for found in spawn(tmp_path, 2):
        assert found["local"] == pytest.approx(found["whole"] / 2, rel=0.01)
        assert found["counts"] == {"allgather_base": 4, "reduce_scatter_base": 3}


def test_tensor_parallel_ranks_hold_a_part_of_every_matrix(tmp_path: Path) -> None:
    for found in spawn(tmp_path, 2, tensor=2, shard=1):
        assert found["local"] == pytest.approx(found["whole"] / 2, rel=0.01), "all but the norms"


def test_a_rank_whose_part_of_the_vocabulary_is_all_padding(tmp_path: Path) -> None:
    """Few ids and many rows after them: the second rank has no logits, takes part in every sum, and the loss is that
    of one rank."""
    found = []
    for name, ranks in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        found += spawn(tmp_path / name, ranks, tensor=ranks, shard=1, vocabulary=40)
    assert [f["loss"] for f in found] == pytest.approx([found[0]["loss"]] * 3, rel=1e-6)
