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
    parser.add_argument("action", choices=("list", "verify", "export", "import"))
    parser.add_argument(
        "path",
        help="list: a run's folder; verify, export: a checkpoint's, or a run's (its newest checkpoint); import: a "
        "folder as Liquid is published, or as its training script wrote it",
    )
    parser.add_argument(
        "output",
        nargs="?",
        help="export, import: a folder that is empty or not there, or a URL such as s3://bucket/model",
    )
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="export, import: cast the weights (default: as they are stored)",
    )
    parser.add_argument(
        "--shard-gib", type=float, default=5.0, help="export, import: GiB of one safetensors file (default: 5)"
    )
    parser.add_argument("--vq-config", help="import: the yaml of the VQ that the model was trained with")
    parser.add_argument("--vq-checkpoint", help="import: the weights of that VQ")
    args = parser.parse_args(rest)
    folder = Path(args.path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if args.action in ("export", "import"):
        return take_out(folder, args)
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


def take_out(folder: Path, args: argparse.Namespace) -> int:
    """Export a model, or import one that has no liquid.json."""
    if args.output is None:
        raise UserError(f"{args.action} needs a folder to write to: liquid checkpoint {args.action} PATH OUTPUT")
    source, card = folder, None
    if args.action == "export":
        source = checkpoint.model_folder(folder)
    else:
        if (folder / "liquid.json").exists():
            raise UserError(f"{folder} has a liquid.json: backbone.path={folder} starts from it as it is")
        if None in (args.vq_config, args.vq_checkpoint):
            raise UserError("import needs the VQ of the training: --vq-config FILE --vq-checkpoint FILE")
        settings = import_module("liquid_train.image_tokenizer.settings")
        vq = settings.VQSettings(args.vq_config, args.vq_checkpoint, settings.TAMING, {})
        _, card = import_module("liquid_train.model.published").published(folder, vq, str(folder))
    plan = import_module("liquid_train.checkpoint.export").export(
        source, args.output, dtype=args.dtype, shard_gib=args.shard_gib, card=card
    )
    print(
        f"{source} -> {args.output}: {plan.elements:,} parameters, {plan.size / 2**30:,.2f} GiB in "
        f"{len(plan.names)} file(s)"
    )
    if card is not None:
        print(f"to train on: liquid train backbone.path={args.output} backbone.init=pretrained ...")
    return 0


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
