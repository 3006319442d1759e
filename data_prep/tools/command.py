"""`liquid data merge|verify|describe|inspect|index|filter`: tools for shard sets, and a look at the sequences made of
them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_prep.tools.limits import MATCHES, Limits
from liquid_train.errors import UserError
from liquid_train.files import check_file

FILTER_EXAMPLES = """\
EXPR compares fields of KEY.json (nested ones with dots, odd names in `backticks`) and, of every sample, key, number,
shard, text, has_image and aspect (long side / short side):
  length(text) >= 20 and 256 <= width < 1024
  score > 0.3 and not source in ['easy_vqa']        a sample without a score is left out, and counted
  captions is present or text matches '(?i)\\bcat'  also contains, is missing
  key in @keys.txt                                  a value a line

examples:
  liquid data filter data/web --where "similarity >= 0.3" --output data/web-good
  liquid data filter data/web --near-duplicates --list gone.jsonl
  liquid data filter data/web --exclude data/benchmark --output data/web-clean
"""


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="liquid data", description="Join the parts of a shard set, check a set, and look into it."
    )
    tools = root.add_subparsers(dest="tool", required=True, metavar="{merge,verify,describe,inspect,index,filter}")
    _add_merge(tools.add_parser("merge", help="join the parts of `liquid tokenize tokenize.part=I/N` into one set"))
    _add_verify(tools.add_parser("verify", help="read an entire set again and compare some of it with its source"))
    _add_describe(tools.add_parser("describe", help="sizes, captions, grid shapes and codebook usage of a set"))
    _add_inspect(
        tools.add_parser(
            "inspect", help="print one sample of a set, or the first packed sequences of a training config"
        )
    )
    _add_index(tools.add_parser("index", help="write the index.json and samples.npy of a folder of tars"))
    _add_filter(tools.add_parser("filter", help="write a subset of a set: by fields, near-duplicates, another set"))
    return root


def _add_merge(tool: argparse.ArgumentParser) -> None:
    tool.description = (
        "Complete OUTPUT from parts. Without PART_FOLDER the parts lie in OUTPUT itself. Otherwise their shards are "
        "linked, or copied, "
        "from the part folders, which stay as they are. Missing, repeated and damaged shards are refused."
    )
    tool.add_argument("output", type=Path, metavar="OUTPUT", help="the folder of the finished set")
    tool.add_argument(
        "parts",
        type=Path,
        nargs="*",
        metavar="PART_FOLDER",
        help="tokenize.output of a part, where each part had its own",
    )
    tool.add_argument(
        "--max-bad",
        type=float,
        metavar="SHARE",
        help="share of unusable rows that is allowed (default: tokenize.max_bad of the parts)",
    )


def _add_verify(tool: argparse.ArgumentParser) -> None:
    tool.description = (
        "Check every tar, sample and total of a set against its index; with the current source, tokenize rows drawn "
        "at random once more. "
        "Lists what is wrong and ends with 1, or says in one line that all is well and ends with 0."
    )
    tool.add_argument("set", type=Path, metavar="SET", help="the folder of the set")
    tool.add_argument(
        "--input",
        metavar="PATH",
        help="what tokenize.input was: rows of it are compared with the set (easy_vqa and python_docs need none)",
    )
    tool.add_argument("--images", metavar="PATH", help="what tokenize.images was, if that folder has moved")
    tool.add_argument("--tokenizer", metavar="PATH", help="what tokenize.tokenizer was, for a set of token ids")
    _add_vq(tool)
    tool.add_argument(
        "--sample", type=int, default=64, metavar="N", help="rows to compare, sampled at random (default: 64)"
    )
    tool.add_argument("--seed", type=int, default=0, help="decides which rows are sampled (default: 0)")
    tool.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="draw a contact sheet: images next to what their codes give, captions under them",
    )


def _add_describe(tool: argparse.ArgumentParser) -> None:
    tool.description = "Print the card of a set."
    tool.add_argument("set", type=Path, metavar="SET", help="the folder of the set")
    tool.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw codebook usage, caption lengths and grid shapes"
    )


def _add_inspect(tool: argparse.ArgumentParser) -> None:
    tool.description = (
        "Print one sample: what its json says, caption, questions, codes. With KEY=VALUE in place of SET: the first "
        "packed sequences "
        "that `liquid train` would train on with these settings (--help after them lists the flags)."
    )
    tool.add_argument("set", type=Path, metavar="SET", help="the folder of the set")
    tool.add_argument(
        "which",
        nargs="?",
        default="0",
        metavar="KEY",
        help="a sample's key, or its number in the set from 0 (default: 0)",
    )
    tool.add_argument("--decode", type=Path, metavar="FILE.png", help="write the image that its codes give")
    _add_vq(tool)


def _add_index(tool: argparse.ArgumentParser) -> None:
    tool.description = (
        "Read the tars of a folder once and write the index.json and samples.npy that random access needs; the VQ of "
        "the codes stays unknown. An index.json of an older version, without samples.npy, gets that and is kept."
    )
    tool.add_argument("set", type=Path, metavar="SET", help="a folder of webdataset tars with KEY.codes.npy or KEY.txt")


def _add_filter(tool: argparse.ArgumentParser) -> None:
    tool.formatter_class = argparse.RawDescriptionHelpFormatter
    tool.description = (
        "Copy the samples of a set that pass into another set; images are not encoded again. Without --output they are "
        "only counted."
    )
    tool.epilog = FILTER_EXAMPLES
    tool.add_argument("set", type=Path, metavar="SET", help="the folder of the set")
    tool.add_argument("--output", metavar="SET2", help="a folder for the samples that stay, or a URL (s3://...)")
    tool.add_argument("--where", metavar="EXPR", help="keep the samples for which this is true (see below)")
    tool.add_argument(
        "--near-duplicates", action="store_true", help="of samples that are alike, keep the first in order of the set"
    )
    tool.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="SET",
        help="leave out what is like a sample of this set, for example a benchmark's; may be given several times",
    )
    limits = Limits()
    tool.add_argument(
        "--match",
        choices=MATCHES,
        default=limits.match,
        help="what is compared: image, text, both (both must be alike), either; auto: images where both samples have "
        "one, else texts (default: auto)",
    )
    tool.add_argument(
        "--image-distance",
        type=int,
        default=limits.image_distance,
        metavar="BITS",
        help=f"of 64 bits so many may differ, 0 to 16 (default: {limits.image_distance})",
    )
    tool.add_argument(
        "--color-distance",
        type=int,
        default=limits.color_distance,
        metavar="LEVELS",
        help=f"mean colors may differ by so much, 0 to 255 (default: {limits.color_distance})",
    )
    tool.add_argument(
        "--text-similarity",
        type=float,
        default=limits.text_similarity,
        metavar="SHARE",
        help=f"share of its 8-byte pieces that two texts have in common, 0.6 to 1 (default: {limits.text_similarity})",
    )
    tool.add_argument("--list", type=Path, metavar="FILE.jsonl", help="name what is left out, why, and what it is like")
    tool.add_argument("--shard-size", type=int, metavar="N", help="samples a tar (default: as in SET)")
    tool.add_argument(
        "--max-bad", type=float, default=0.05, metavar="SHARE", help="share of damaged samples allowed (default: 0.05)"
    )


def _filter(args: argparse.Namespace) -> int:
    from data_prep.tools.filter import FilterRequest, filter_set

    for flag, value, low, high in (
        ("--image-distance", args.image_distance, 0, 16),
        ("--color-distance", args.color_distance, 0, 255),
        ("--text-similarity", args.text_similarity, 0.6, 1),
        ("--max-bad", args.max_bad, 0, 1),
        ("--shard-size", args.shard_size or 1, 1, 2**31),
    ):
        if not low <= value <= high:
            raise UserError(f"{flag} {value}: must be from {low} to {high}")
    limits = Limits(args.match, args.image_distance, args.color_distance, args.text_similarity)
    request = FilterRequest(
        args.output,
        args.where,
        args.near_duplicates,
        tuple(args.exclude),
        limits,
        args.list,
        args.shard_size,
        args.max_bad,
    )
    filter_set(args.set, request)
    return 0


def _preview(arguments: list[str]) -> int:
    """`liquid data inspect KEY=VALUE ...`"""
    from liquid_train.config.compose import load
    from liquid_train.debug.preview import preview

    tool = argparse.ArgumentParser(
        prog="liquid data inspect", description="Print the first packed sequences of a training config."
    )
    tool.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="as `liquid train` takes them, for example experiment=quickstart",
    )
    tool.add_argument("--sequences", type=int, default=2, metavar="N", help="how many (default: 2)")
    tool.add_argument(
        "--images", "--pictures", type=Path, metavar="FILE.png", help="write the images in them, in order, as one PNG"
    )
    args = tool.parse_args(arguments)
    if args.sequences < 1:
        raise UserError(f"--sequences {args.sequences}: must be 1 or more")
    _check_image("--images", args.images)
    preview(load("train", list(args.overrides)), args.sequences, args.images)
    return 0


def _add_vq(tool: argparse.ArgumentParser) -> None:
    tool.add_argument(
        "--vq-config",
        metavar="F",
        help="yaml of the VQ that made the codes (default: the VQ that ships with the package)",
    )
    tool.add_argument("--vq-checkpoint", metavar="F", help="its .ckpt or .safetensors")


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 1 where a set is not as it should be. Raises UserError for a user's mistake."""
    if arguments[:1] == ["inspect"] and any(
        "=" in argument and not argument.startswith("-") for argument in arguments[1:]
    ):
        return _preview(arguments[1:])
    args = parser().parse_args(arguments)
    if args.tool == "index":
        from liquid_train.data.index_builder import build_index

        index = build_index(args.set)
        print(
            f"{args.set}: index.json and samples.npy written, {sum(s['nsamples'] for s in index['shardlist']):,} "
            f"samples in {len(index['shardlist'])} tars"
        )
        return 0
    if args.tool == "merge":
        from data_prep.tools.merge import merge

        if args.max_bad is not None and not 0 <= args.max_bad <= 1:
            raise UserError(f"--max-bad {args.max_bad}: a share from 0 to 1")
        merge(args.output, args.parts, args.max_bad)
        return 0
    if args.tool == "filter":
        return _filter(args)
    image = {"verify": "sheet", "describe": "plot", "inspect": "decode"}[args.tool]
    _check_image(f"--{image}", getattr(args, image))
    try:
        return _look(args)
    except BrokenPipeError:  # the reader has enough, as in `liquid data inspect SET | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        raise UserError(f"{args.set}: {error}") from error


def _look(args: argparse.Namespace) -> int:
    from data_prep.shard_set.vq import asked_vq

    if args.tool == "describe":
        from data_prep.tools.describe import describe_set

        describe_set(args.set, args.plot)
        return 0
    vq = asked_vq(args.vq_config, args.vq_checkpoint)
    if args.tool == "inspect":
        from data_prep.tools.show import show_sample

        show_sample(args.set, args.which, args.decode, vq)
        return 0
    from data_prep.tools.verify import VerifyRequest, verify

    if args.sample < 1:
        raise UserError(f"--sample {args.sample}: must be 1 or more")
    if args.images is not None and args.input is None:
        raise UserError("--images goes with --input: give the list that names the images too")
    return verify(
        args.set, VerifyRequest(vq, args.input, args.images, args.tokenizer, args.sample, args.seed, args.sheet)
    )


def _check_image(flag: str, path: Path | None) -> None:
    """Raise UserError for a file that cannot become a PNG, before any work."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise UserError(f"{flag} {path}: a PNG is written; give a name that ends in .png")
    check_file(path, f"{flag} {path}")
