"""Pictures of a sharded model on two ranks: those that one process draws with the same weights, to the code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from evals.measurement import ModelHandle
from evals.periodic import draw_prompts
from liquid_train.config import LossConfig, ParallelConfig
from liquid_train.data.sequences import DEFAULT_PROMPT
from liquid_train.eval_settings import EvalsConfig
from liquid_train.generate.live import live_model
from liquid_train.generate.sampler import draw
from liquid_train.loss import LossModule
from liquid_train.parallel import World, parallelize
from tests.tiny_model import tiny, vq

PROMPTS = [f"a {('red', 'teal', 'blue')[i % 3]} {('circle', 'rectangle')[i % 2]}" for i in range(24)]
GRID = (3, 4)


def rank_main(rank: int, folder: str, architecture: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    lm, vocabulary = tiny(Path(folder) / f"tokenizer-{rank}", architecture)
    root = LossModule.of(lm, vocabulary, LossConfig())
    device = torch.device("cpu")
    parallelize(root, ParallelConfig(precision="fp32"), World(rank, 2, device))
    settings = EvalsConfig(guidance=7.0, temperature=1.0, prompts=PROMPTS, images=len(PROMPTS), quality_images=0)
    for _ in range(2):  # the second time shows that the first left everything in its place
        with live_model(root, lm, device) as model:
            codes = draw_prompts(ModelHandle(model, vocabulary, vq(), GRID, DEFAULT_PROMPT, rank, 2), settings, len(PROMPTS)).codes
        assert all(isinstance(p, DTensor) for p in root.parameters()), "the weights are sharded again"
        np.save(Path(folder) / f"codes-{rank}.npy", codes)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_two_ranks_draw_what_one_process_draws(tmp_path: Path, architecture: str) -> None:
    torch.multiprocessing.spawn(rank_main, (str(tmp_path), architecture), nprocs=2)
    model, vocabulary = tiny(tmp_path / "alone", architecture)
    expected = draw(model, vocabulary, PROMPTS, seeds=range(24), grid=GRID, guidance=7.0, temperature=1.0, batch_size=24)
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"codes-{rank}.npy"), expected)
