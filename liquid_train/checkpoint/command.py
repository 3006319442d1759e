"""`liquid checkpoint`: looking at checkpoints, and taking the model out of one."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.errors import UserError


def main(rest: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="liquid checkpoint", description="Look at checkpoints, and take the model out of one."
    )
    parser.add_argument("action", choices=("list", "verify", "export"))
    parser.add_argument(
        "path", help="list: a run's folder; verify, export: a checkpoint's, or a run's (its newest checkpoint)"
    )
    parser.add_argument(
        "output", nargs="?", help="export: a folder that is empty or not there, or a URL such as s3://bucket/model"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), help="export: cast the weights (default: as they are stored)"
    )
    parser.add_argument("--shard-gib", type=float, default=5.0, help="export: GiB of one safetensors file (default: 5)")
    args = parser.parse_args(rest)
    folder = Path(args.path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if args.action == "export":
        if args.output is None:
            raise UserError("export needs a folder to write to: liquid checkpoint export CHECKPOINT_OR_RUN OUTPUT")
        source = checkpoint.model_folder(folder)
        plan = import_module("liquid_train.checkpoint.export").export(
            source, args.output, dtype=args.dtype, shard_gib=args.shard_gib
        )
        print(
            f"{source} -> {args.output}: {plan.elements:,} parameters, {plan.size / 2**30:,.2f} GiB in "
            f"{len(plan.names)} file(s)"
        )
        return 0
    if args.action == "list":
        scored, best, complete = checkpoint.read_scores(folder), checkpoint.best(folder), checkpoint.committed(folder)
        if not complete:
            raise UserError(f"{folder}: no complete checkpoint in {folder / 'checkpoints'}; give the folder of a run")
        for found in complete:
            size = sum(f["size"] for f in checkpoint.read_commit(found)["files"].values())
            mark = (
                f"  best: {scored['metric']} {scored['scores'][str(checkpoint.step_of(found))]:.4g}"
                if found == best
                else ""
            )
            print(f"{found}  {size / 2**20:,.1f} MiB{mark}")
        return 0
    return verify(folder)


def verify(folder: Path) -> int:
    """Print what is wrong with a checkpoint, or a run's newest one. Exit status: 0 where nothing is. UserError for a
    folder that is neither."""
    if not (folder / checkpoint.COMMIT).exists():
        complete = checkpoint.committed(folder)
        if not complete:
            raise UserError(
                f"{folder}: no {checkpoint.COMMIT} there, so no complete checkpoint; give "
                "RUN/checkpoints/step-NNNNNNNN, or a run that has one"
            )
        folder = complete[-1]
    wrong = checkpoint.problems(folder, hashes=True)
    print("\n".join(f"{folder}: {line}" for line in wrong or ["complete, every file as recorded"]))
    return 1 if wrong else 0
