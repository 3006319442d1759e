"""A sharded model while it trains: images and every periodic number are those of one process with the same
weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from evals.generated import generate_shared
from evals.periodic import evaluate
from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.distributed.parallelize import World, compute_dtype, parallelize
from liquid_train.distributed.settings import ParallelConfig
from liquid_train.generate.image_sampler import sample_images
from liquid_train.generate.live_model import live_model
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.model.attention import PACKED
from liquid_train.model.loss import LossModule
from liquid_train.model.settings import LossConfig
from liquid_train.training.heldout import heldout_set, log_heldout
from liquid_train.training.settings import EvalsConfig
from tests.distributed.running import data_overrides, make_data
from tests.forked import spawn
from tests.tiny_model import tiny, vq

PROMPTS = [f"a {('red', 'teal', 'blue')[i % 3]} {('circle', 'rectangle')[i % 2]}" for i in range(24)]
GRID = (3, 4)
ARCHITECTURES = ("qwen2", "gemma2")
# language has a test of its own: its harness is dear to import
MEASURED = {"vqa", "grid", "image_quality", "self_vqascore", "captions", "heldout"}


def rank_main(rank: int, size: int, folder: Path, config: TrainJob) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size)
    world = World(rank, size, torch.device("cpu"))
    if size == 2:
        for architecture in ARCHITECTURES:
            draw_sharded(world, folder, architecture)
    else:
        draw_alone(world, folder)
    measure_everything(world, folder, config)
    dist.barrier()
    dist.destroy_process_group()


def draw_sharded(world: World, folder: Path, architecture: str) -> None:
    lm, vocabulary = tiny(folder / f"tokenizer-{world.rank}", architecture)
    root = LossModule.of(lm, vocabulary, LossConfig())
    parallelize(root, lm, ParallelConfig(precision="fp32"), world)
    settings = EvalsConfig(guidance=7.0, temperature=1.0, prompts=PROMPTS, images=len(PROMPTS), quality_images=0)
    place = GRID, DEFAULT_PROMPT, world.rank, world.size
    for sharded in (False, True, False):  # each leaves everything in its place for the next
        with live_model(root, lm, world.device, sharded=sharded) as live:
            handle = ModelHandle(live.model, vocabulary, vq(), *place, settle=live.settle)
            codes = generate_shared(handle, PROMPTS, settings, len(PROMPTS)).codes
        assert all(isinstance(p, DTensor) for p in root.parameters()), "the weights are sharded again"
        np.save(folder / f"codes-{architecture}-{sharded}-{world.rank}.npy", codes)


def draw_alone(world: World, folder: Path) -> None:
    """With blocks gathered one by one, a rank that draws nothing serves those that do, in steps of their own."""
    lm, vocabulary = tiny(folder / f"tokenizer-{world.rank}")
    root = LossModule.of(lm, vocabulary, LossConfig())
    parallelize(root, lm, ParallelConfig(precision="fp32"), world)
    with live_model(root, lm, world.device, sharded=True) as live:
        assert next(live.model.model.layers.parameters()).is_meta
        seeds = range(3 * world.rank)  # none, 3, 6, 9
        if seeds:
            prompts = [PROMPTS[seed] for seed in seeds]
            found = sample_images(live.model, vocabulary, prompts, seeds=seeds, grid=GRID, batch_size=4)
            np.save(folder / f"alone-{world.rank}.npy", found)


def measure_everything(world: World, folder: Path, config: TrainJob) -> None:
    """As liquid_train.train does; into FOLDER/run-SIZE, and every rank's numbers next to it."""
    out_dir = folder / f"run-{world.size}"
    lm, vocabulary = tiny(folder / f"measured-{world.size}-{world.rank}")
    lm.config._attn_implementation = PACKED
    data = heldout_set(
        config.data, config.loss, config.seed, vocabulary, vq().fingerprint, micro_batch=config.train.micro_batch
    )
    root = LossModule.of(lm, vocabulary, config.loss)
    if world.size > 1:
        parallelize(root, lm, ParallelConfig(precision="fp32"), world)
    found = log_heldout(root, data, world, 1, out_dir, compute_dtype(config.parallel))
    with live_model(root, lm, world.device, sharded=world.size == 4) as live:
        found |= evaluate(
            live.model,
            vocabulary,
            vq(),
            config.evals,
            sets=config.data.heldout["vqa"].path,
            grid=GRID,
            prompt=DEFAULT_PROMPT,
            step=1,
            out_dir=out_dir,
            rank=world.rank,
            world_size=world.size,
            settle=live.settle,
        )
    (folder / f"found-{world.size}-{world.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have left there, and the data."""
    root = make_data(tmp_path_factory.mktemp("live"))
    spawn(rank_main, (2, root, settings(root)), nprocs=2)
    return root


def settings(folder: Path) -> TrainJob:
    # 2 and 4 divide none
    numbers = (
        "vqa_samples=7",
        "images=5",
        "quality_images=9",
        "quality_reference=12",
        "caption_images=7",
        "guidance=3.0",
    )
    heldout = (f"data.heldout.{task}.max_samples=9" for task in ("text", "t2i", "i2t", "vqa"))
    return load("train", ["experiment=quickstart", *data_overrides(folder), *(f"evals.{n}" for n in numbers), *heldout])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_ranks_draw_what_one_process_draws(folder: Path, tmp_path: Path, architecture: str) -> None:
    model, vocabulary = tiny(tmp_path / "alone", architecture)
    expected = sample_images(
        model, vocabulary, PROMPTS, seeds=range(24), grid=GRID, guidance=7.0, temperature=1.0, batch_size=24
    )
    for rank in range(2):
        for sharded in (False, True):
            np.testing.assert_array_equal(np.load(folder / f"codes-{architecture}-{sharded}-{rank}.npy"), expected)


def test_one_two_and_four_ranks_measure_the_same(folder: Path, tmp_path: Path) -> None:
    """Every number with its interval, on every rank; and the provenance, so that they compare. Four ranks never hold
    the whole model."""
    measure_everything(World(0, 1, torch.device("cpu")), folder, settings(folder))
    spawn(rank_main, (4, folder, settings(folder)), nprocs=4)
    single = json.loads((folder / "found-1-0.json").read_text())
    assert {
        "val/loss/text",
        "val/accuracy/t2i",
        "eval/frechet_distance",
        "eval/caption_auc/full_caption_color",
        "eval/right_shape",
    } <= single.keys()
    assert 0 < single["eval/self_vqascore"] < 1 and len(set(single.values())) > 15
    for size in (2, 4):
        for rank in range(size):
            found = json.loads((folder / f"found-{size}-{rank}.json").read_text())
            # Ranks compute features in batches of other sizes, which some CPUs round otherwise, and the root of a
            # covariance of nine images, which is singular, makes 4e-6 of that.
            assert found.pop("eval/frechet_distance") == pytest.approx(single["eval/frechet_distance"], rel=1e-4)
            rest = {name: value for name, value in single.items() if name != "eval/frechet_distance"}
            assert found == pytest.approx(rest, rel=1e-6, abs=1e-6)
        for name in MEASURED:
            one, more = (
                json.loads((folder / f"run-{n}" / "evals" / f"step-00000001-{name}.json").read_text())
                for n in (1, size)
            )
            assert one["receipt"] == more["receipt"] and one["values"].keys() == more["values"].keys()
            for key, value in one["values"].items():
                found = more["values"][key]
                assert numbers(found) == pytest.approx(numbers(value), rel=1e-6, abs=1e-6), key
                assert found.keys() == value.keys() and found["interval"] == value["interval"]
    model, vocabulary = tiny(tmp_path / "alone")
    every = sample_images(model, vocabulary, PROMPTS[:9], seeds=range(9), grid=GRID, batch_size=4)
    for rank in (1, 2, 3):
        np.testing.assert_array_equal(np.load(folder / f"alone-{rank}.npy"), every[: 3 * rank])


def numbers(value: dict[str, Any]) -> dict[str, float]:
    return {key: number for key, number in value.items() if isinstance(number, int | float)}
