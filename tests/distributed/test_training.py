"""Real training through the command line: 1 and 2 gloo ranks agree, kill -9 and SIGTERM are survived, the result is
plain HF."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.vocabulary import load_tokenizer
from tests.distributed.running import (
    ENV,
    attempt,
    data_overrides,
    kill_all,
    launch,
    make_data,
    metrics,
    start,
    train,
    wait_for_step,
    without_launcher,
    without_timings,
)
from tests.shard_sets import image_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def one_rank(root: Path) -> list[dict]:
    return train(root, "one", "train.steps=20", "launch.nproc=1", "train.batch_digest=true", "checkpoint.every=10")


@pytest.mark.slow  # as test_layouts.py, through the command
def test_two_ranks_equal_one(root: Path, one_rank: list[dict]) -> None:
    done = launch(root, "two", "train.steps=20", "launch.nproc=2", "train.batch_digest=true", "data.workers=1")
    assert done.returncode == 0, done.stderr
    two = metrics(root / "two")
    assert [m["batch_digest"] for m in two] == [m["batch_digest"] for m in one_rank]
    for a, b in zip(one_rank, two, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-4 and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert {k for k in a if k.startswith("loss/")} == {k for k in b if k.startswith("loss/")}


def test_replay_rebuilds_a_step_document_by_document(
    root: Path, one_rank: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from liquid_train.cli import main

    # step 10 was saved: the very weights
    assert main(["run", "replay", str(root / "one"), "--step", "11", "--output", str(tmp_path)]) == 0
    assert "its digest is the one that was logged" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert [d["grad_norm"] for d in found] == sorted((d["grad_norm"] for d in found), reverse=True)
    assert "t2i" in {d["task"] for d in found}
    for task in {d["task"] for d in found if d["targets"]}:
        of_task = [d for d in found if d["task"] == task]
        mean = sum(d["loss"] * d["targets"] for d in of_task) / sum(d["targets"] for d in of_task)
        assert mean == pytest.approx(one_rank[10][f"loss/{task}"], abs=1e-3)
    assert (tmp_path / "images.png").is_file()
    assert main(["run", "replay", str(root / "one"), "--step", "99"]) == 2
    assert "--step 99: the run has the steps 1 to 20" in capsys.readouterr().err


def test_the_first_sequences_of_a_config_can_be_read(root: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from liquid_train.cli import main

    overrides = ["experiment=quickstart", *data_overrides(root)]
    assert main(["data", "inspect", *overrides, "--sequences", "2", "--images", str(tmp_path / "strip.png")]) == 0
    out = capsys.readouterr().out
    assert "sequence 1 (step 1)" in out and "<64 codes>" in out and "t2i/" in out and (tmp_path / "strip.png").is_file()


def test_first_loss_is_that_of_a_uniform_guess(one_rank: list[dict]) -> None:
    rows = 300 + 1024
    assert one_rank[0]["loss"] == pytest.approx(torch.tensor(float(rows)).log().item(), abs=0.1)


def test_the_checkpoint_is_a_plain_hugging_face_folder(root: Path, one_rank: list[dict]) -> None:
    """Equal logits through plain transformers and through our packed attention, weights bit for bit."""
    from liquid_train.data.document_plan import DocumentPlan
    from liquid_train.model.attention import PACKED

    folder = checkpoint.model_folder(root / "one")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    packed = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=PACKED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("is there 1 <boi>?") == load_tokenizer(folder).encode("is there 1 <boi>?")
    ids = torch.tensor(
        [[tokenizer.bos_token_id, *tokenizer.encode("a red circle"), *range(len(tokenizer), len(tokenizer) + 64)]]
    )
    a = plain(input_ids=ids).logits
    b = packed(input_ids=ids, use_cache=False, document_plan=DocumentPlan.from_lengths([ids.shape[1]])).logits
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert a.shape[-1] == len(tokenizer) + 1024 and plain.dtype == torch.float32
    card = json.loads((folder / "liquid.json").read_text())
    assert card["image_start"] == len(tokenizer) and card["grid"] == [8, 8]


def test_a_run_cut_in_two_equals_a_whole_one(root: Path, one_rank: list[dict]) -> None:
    """Stop at step 10 (a checkpoint), go on to 20: every metric but the timings and the final weights are bit-equal."""
    constant = ["schedule=constant", "schedule.warmup=0", "launch.nproc=1", "checkpoint.every=10"]
    whole = train(root, "whole", "train.steps=20", *constant)
    train(root, "cut", "train.steps=10", *constant)
    cut = train(root, "cut", "train.steps=20", *constant)
    assert without_timings(cut) == without_timings(whole)
    weights = [(checkpoint.model_folder(root / r) / "model.safetensors").read_bytes() for r in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_kill_minus_nine_loses_only_the_work_since_the_checkpoint(root: Path) -> None:
    overrides = ["train.steps=400", "launch.nproc=2", "checkpoint.every=5"]
    process = start(root, "killed", *overrides)
    wait_for_step(root / "killed", 12, process)
    kill_all(process)
    newest = checkpoint.step_of(checkpoint.committed(root / "killed")[-1])
    assert newest >= 5  # that of step 10 may still have been written
    lines = train(root, "killed", "train.steps=40", "launch.nproc=2", "checkpoint.every=5", "schedule=constant")
    assert [m["step"] for m in lines] == list(range(1, 41))
    again = attempt(root, "killed", "train.steps=40", "launch.nproc=2", "checkpoint.every=5", "schedule=constant")
    assert again.returncode == 0 and "nothing to do" in again.stdout


# a job scheduler signals torchrun and the ranks next to the command
@pytest.mark.parametrize("whole_group", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sigterm_saves_and_leaves(root: Path, whole_group: bool) -> None:
    name = f"stopped-{whole_group}"
    overrides = ["train.steps=4000", "launch.nproc=2", "checkpoint.every=1000"]
    process = start(root, name, *overrides, stderr=subprocess.PIPE)
    wait_for_step(root / name, 3, process)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
        subprocess.run(["pkill", "-TERM", "-f", f"liquid_train.train.*{root / name}"], check=False)
    else:
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    saved = checkpoint.committed(root / name)
    assert process.returncode == 0 and saved and checkpoint.step_of(saved[-1]) == metrics(root / name)[-1]["step"], err


def test_another_config_is_refused_and_says_why(root: Path, one_rank: list[dict]) -> None:
    done = attempt(root, "one", "train.steps=30", "launch.nproc=1", "data.seq_len=128", "seed=3")
    assert (
        done.returncode == 2
        and "data.seq_len: 256 -> 128" in done.stderr
        and "seed: 0 -> 3" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_damaged_checkpoint_does_not_exist(root: Path, one_rank: list[dict]) -> None:
    complete = checkpoint.committed(root / "one")
    assert [checkpoint.step_of(c) for c in complete] == [10, 20]
    weights = complete[-1] / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert checkpoint.committed(root / "one") == complete[:1]
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint.problems(complete[-1]) == [] and "sha256" in checkpoint.problems(complete[-1], hashes=True)[0]
    weights.write_bytes(content)


def test_one_run_folder_one_writer(root: Path) -> None:
    from liquid_train.training.tracker import RunLock

    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time; from liquid_train.training.tracker import RunLock\n"
            "lock = RunLock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)",
            str(root / "locked"),
        ],
        env=ENV,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="another process is training there"):
        RunLock(root / "locked")
    holder.kill()
    holder.wait()
    RunLock(root / "locked").release()


@pytest.mark.slow
def test_every_rank_exits_cleanly_twenty_times(root: Path) -> None:
    """gloo aborts at exit when sharded tensors outlive the process group: 20 runs of 2 ranks, every one with status
    0."""
    for n in range(20):
        # asserts exit status 0
        lines = train(root, f"exit-{n}", "train.steps=3", "launch.nproc=2", "checkpoint.every=3")
        assert [m["step"] for m in lines] == [1, 2, 3]


def test_damaged_samples_are_counted_and_survived(root: Path, tmp_path: Path) -> None:
    images = image_set(tmp_path / "images", samples=30)
    tar = images / "shard-00000.tar"
    content = bytearray(tar.read_bytes())
    where = content.find(b"\x93NUMPY", len(content) // 2)
    content[where : where + 6] = b"broken"
    tar.write_bytes(content)
    paths = [f"data.sources.{task}.path={images}" for task in ("t2i", "i2t", "vqa")]
    lines = train(root, "damaged", "train.steps=8", "launch.nproc=2", *paths)
    assert all(lines[-1][f"dropped/{task}: codes do not parse"] == 1 for task in ("t2i", "i2t", "vqa"))
    done = without_launcher(root, "too-damaged", "train.steps=8", "launch.nproc=2", "data.max_bad=0.001", *paths)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "data.max_bad=0.001: 1 of " in done.stderr and "codes do not parse" in done.stderr


def test_the_best_checkpoint_stays_beside_the_newest(root: Path) -> None:
    """By the highest held-out loss, which is the first one's: `lowest` would be the last one's, which is kept
    anyway."""
    lines = train(
        root,
        "best",
        "launch.nproc=1",
        "train.steps=8",
        "checkpoint.every=2",
        "checkpoint.keep=1",
        "evals=none",
        "evals.every=2",
        "checkpoint.best=val/loss/t2i",
        "checkpoint.best_is=highest",
    )
    losses = {line["step"]: line["val/loss/t2i"] for line in lines if "val/loss/t2i" in line}
    assert (
        checkpoint.read_scores(root / "best")["scores"] == {str(step): loss for step, loss in losses.items()}
        and len(losses) == 4
    )
    highest = max(losses, key=lambda step: losses[step])
    assert highest != 8 and [checkpoint.step_of(p) for p in checkpoint.committed(root / "best")] == [highest, 8]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["parallel.compile=true", "parallel.cpu_offload=true"])
def test_compiled_or_offloaded_it_is_the_same_run(root: Path, one_rank: list[dict], option: str) -> None:
    """Also with documents of ever new lengths: a compiled block must not be compiled again for each."""
    found = train(root, option, "train.steps=20", "launch.nproc=2", "train.batch_digest=true", option)
    for ours, expected in zip(found, one_rank, strict=True):
        assert ours["batch_digest"] == expected["batch_digest"] and abs(ours["loss"] - expected["loss"]) < 1e-4
