"""Loss and gradient norm of 12 steps are the same in every layout of ranks, and those of a plain transformers loop over
single documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed import layouts
from tests.distributed.running import data_overrides, make_data
from tests.forked import run_ranks

STEPS = 12
FAMILIES = {
    "qwen2": [],
    "llama": [],
    "gemma": ["head_dim=16"],
    "gemma2": [
        "head_dim=16",
        "query_pre_attn_scalar=16",
        "sliding_window=24",
        "attn_logit_softcapping=5.0",
        "final_logit_softcapping=3.0",
    ],
    "qwen3": ["head_dim=16"],
    "gemma3_text": [
        "head_dim=16",
        "query_pre_attn_scalar=16",
        "sliding_window=24",
        "layer_types=[sliding_attention,full_attention]",
    ],
    "granite": ["logits_scaling=4.0", "residual_multiplier=0.5", "embedding_multiplier=3.0"],
    "gpt_oss": ["head_dim=16", "sliding_window=24", "num_local_experts=4", "num_experts_per_tok=2"],
}
NOT_CUT = ("gpt_oss",)  # refused with parallel.tensor above 1: transformers has no plan for its experts and sinks
LAYOUTS = {  # ranks, overrides
    "fsdp 2": (2, []),
    "hsdp 2x2": (4, ["parallel.replicate=2"]),
    "fsdp 2 x tp 2": (4, ["parallel.tensor=2"]),  # each rank has its part of every sequence
}


def overrides(root: Path, run: str, family: str, *more: str) -> list[str]:
    """Rows that no number of ranks divides (301 + 1,024); sequences whose counts of targets differ."""
    shape = ["num_attention_heads=4", "num_key_value_heads=2", *FAMILIES[family]]
    return [
        "experiment=quickstart",
        *data_overrides(root),
        f"backbone.architecture.model_type={family}",
        *(f"backbone.architecture.{s}" for s in shape),
        "backbone.tokenizer_size=301",
        "loss.weight.vqa=1",
        "loss.weight.i2t=1",
        "loss.router=0",  # the plain loop has none
        f"train.steps={STEPS}",
        "evals.every=0",
        "schedule=constant",
        "schedule.warmup=0",
        f"run.dir={root / run}",
        *more,
    ]


def run_jobs(root: Path, name: str, ranks: int, jobs: dict[str, list[str]]) -> dict[str, list[list[float]]]:
    todo, result = root / f"{name}.json", root / f"{name}-result.json"
    todo.write_text(json.dumps([{"name": job, "overrides": o} for job, o in jobs.items()]))
    run_ranks(layouts.main, (todo, result), ranks)
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def reference(root: Path) -> dict[str, list[list[float]]]:
    """The plain loop for each family."""
    jobs = {f"plain {f}": overrides(root, f"plain-{f}", f) for f in FAMILIES}
    return {name.removeprefix("plain "): lines for name, lines in run_jobs(root, "plain", 1, jobs).items()}


def assert_equal(found: list[list[float]], wanted: list[list[float]], what: str) -> None:
    """Loss within 1e-5, gradient norm within 1e-4, relative where they are above 1."""
    assert len(found) == len(wanted) == STEPS
    for step, ((loss, norm), (want_loss, want_norm)) in enumerate(zip(found, wanted, strict=True)):
        assert loss == pytest.approx(want_loss, rel=1e-5, abs=1e-5), f"{what}, step {step}"
        assert norm == pytest.approx(want_norm, rel=1e-4, abs=1e-4), f"{what}, step {step}"


def test_one_rank_and_accumulation(root: Path, reference: dict[str, list[list[float]]]) -> None:
    """All four sequences of a step at once, or two times two, or one by one."""
    jobs = {
        f"{f} {micro}": overrides(root, f"one-{f}-{micro}", f, f"train.micro_batch={micro}")
        for f in FAMILIES
        for micro in ((1, 2, 4) if f == "qwen2" else (2,))
    }
    for name, lines in run_jobs(root, "one", 1, jobs).items():
        assert_equal(lines, reference[name.split()[0]], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(root: Path, reference: dict[str, list[list[float]]], layout: str) -> None:
    ranks, more = LAYOUTS[layout]
    cut = "parallel.tensor=2" in more
    families = [f for f in FAMILIES if not (cut and f in NOT_CUT)]
    jobs = {f: overrides(root, f"{layout}-{f}".replace(" ", "_"), f, *more) for f in families}
    for family, lines in run_jobs(root, layout.replace(" ", "_"), ranks, jobs).items():
        assert_equal(lines, reference[family], f"{layout}, {family}")


def test_muon_in_every_layout_that_it_takes(root: Path) -> None:
    """One rank's own losses over 12 steps; matrices of 16 rows over 3 ranks, too, which do not divide them."""
    lines = {}
    for name, (ranks, more) in {"1": (1, []), "3": (3, []), "hsdp": LAYOUTS["hsdp 2x2"]}.items():
        job = overrides(root, f"muon-{name}", "qwen2", "optimizer=muon", "train.steps=12", "train.micro_batch=2", *more)
        lines[name] = run_jobs(root, f"muon-{name}", ranks, {"muon": job})["muon"]
    assert lines["1"][-1][0] < lines["1"][0][0]
    for name in ("3", "hsdp"):
        for (loss, norm), (want_loss, want_norm) in zip(lines[name], lines["1"], strict=True):
            assert loss == pytest.approx(want_loss, rel=1e-5) and norm == pytest.approx(want_norm, rel=1e-4), name
    with pytest.raises(Exception, match="optimizer=muon: not with parallel.tensor above 1"):
        job = overrides(root, "muon-tp", "qwen2", "optimizer=muon", *LAYOUTS["fsdp 2 x tp 2"][1])
        run_jobs(root, "muon-tp", 4, {"muon": job})


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activation_checkpoints_change_nothing(root: Path, reference: dict[str, list[list[float]]], kind: str) -> None:
    jobs = {f: overrides(root, f"{kind}-{f}", f, f"parallel.activation_checkpoint={kind}") for f in ("qwen2", "gemma2")}
    for family, lines in run_jobs(root, kind, 2, jobs).items():
        assert_equal(lines, reference[family], f"{kind}, {family}")
