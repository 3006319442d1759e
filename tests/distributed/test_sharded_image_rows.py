"""Image rows on a mesh of 2 copies x 2 shards: every rank's rows are those that one process makes, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from liquid_train.model import backbone
from liquid_train.model.embedding_init import fill_image_rows
from liquid_train.model.settings import BackboneConfig
from liquid_train.vocabulary import Vocabulary, load_tokenizer
from tests.forked import spawn
from tests.model.test_backbone import pretrained

CODES = 1201  # with the text's rows not a multiple of 2
STARTS = ("mean", "normal", "codebook")


def filled(folder: Path, image_init: str, mesh: Any = None) -> dict[str, torch.Tensor]:
    """Embedding and head of the extended model, whole."""
    config = backbone.model_config(BackboneConfig(path=str(folder)), 0)
    vocabulary = Vocabulary(load_tokenizer(folder), CODES, config.vocab_size + CODES)
    model = backbone.build(config, vocabulary)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    backbone.materialize(model, torch.device("cpu"))
    backbone.fill_from_folder(model, folder)
    fill_image_rows(
        model, vocabulary, image_init, torch.rand(CODES, 5, generator=torch.Generator().manual_seed(0)), seed=3
    )
    return {
        name: tensor
        for name, tensor in backbone.named_full_tensors(model)
        if name in ("model.embed_tokens.weight", "lm_head.weight")
    }


def rank_main(rank: int, folder: Path, wanted: dict[str, dict[str, torch.Tensor]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for image_init, tables in wanted.items():
        found = filled(folder, image_init, mesh)
        for name, tensor in tables.items():
            assert torch.equal(found[name], tensor), (
                f"{image_init}, rank {rank}: {name} differs by {(found[name] - tensor).abs().max()}"
            )
    dist.destroy_process_group()


def test_ranks_make_the_rows_that_one_makes(tmp_path: Path) -> None:
    folder = pretrained(tmp_path, "qwen2", tied=False, spare_rows=0)
    wanted = {image_init: filled(folder, image_init) for image_init in STARTS}
    for tables in wanted.values():
        assert len(tables) == 2 and not any((table == 0).all(1).any() for table in tables.values()), (
            "no row was left out"
        )
    spawn(rank_main, (folder, wanted), nprocs=4)
