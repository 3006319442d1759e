"""Everything `liquid tokenize` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from liquid_train.config.fields import MISSING, Section, require, setting
from liquid_train.config.log_settings import LogConfig
from liquid_train.image_tokenizer.settings import VQSettings

# What KEY.json says of its own, and training reads
OWN_KEYS = (
    *("width", "height", "original_width", "original_height", "multiratio", "source", "image_hash", "text_hash"),
    *("captions", "questions", "messages", "parts", "text", "codes", "ids"),
)


@dataclass
class TokenizeSettings(Section):
    """What is read, how it is cut and encoded, where it goes."""

    kind_key = "source"

    source: Annotated[str, setting("what kind of input", kinds="data_prep.sources:SOURCES")] = MISSING
    input: Annotated[
        str | None,
        setting(
            "a file, a folder, or a pattern such as shards/{00000..00099}.tar",
            null="the source needs none",
            is_path=True,
        ),
    ] = None
    images: Annotated[
        str | None,
        setting("pairs, vqa, chat: what paths of images are relative to", null="the list's own folder", is_path=True),
    ] = None
    image_key: Annotated[str | None, setting("where a row has its image", null="the usual names")] = None
    text_key: Annotated[str | None, setting("where a row has its text, caption or ids", null="the usual names")] = None
    tokenizer: Annotated[
        str | None, setting("ids: folder of the tokenizer that made them", null="no ids are read", is_path=True)
    ] = None
    keep: Annotated[
        list[str] | None,
        setting(
            "keys of a row that KEY.json keeps, for `liquid data filter`: [similarity, url, a.b]; webdataset: also "
            "__key__ and __url__",
            null="none",
        ),
    ] = None
    output: Annotated[str, setting("folder for shard-00000.tar ... and index.json", is_path=True)] = MISSING
    split: Annotated[str, setting("easy_vqa, python_docs: train or test")] = "train"
    copies: Annotated[
        int,
        setting(
            "easy_vqa: 2: every image also once mirrored (by a coin) and shifted by up to 8 pixels; 3: twice; ...", ge=1
        ),
    ] = 1
    crop: Annotated[
        Literal["none", "center", "multiratio"],
        setting(
            "none: as it is; center: shorter side to size, centre square; multiratio: the nearest of a list of sizes"
        ),
    ] = "none"
    size: Annotated[int | None, setting("pixels", ge=1, null="the resolution of the image tokenizer")] = None
    sizes: Annotated[
        list[str] | None,
        setting("multiratio: [WIDTHxHEIGHT, ...]", null="sizes of about size^2 pixels up to max_aspect"),
    ] = None
    max_aspect: Annotated[
        float | None, setting("long side / short side; longer images are left out", ge=1, null="no limit")
    ] = 2.0
    max_characters: Annotated[int, setting("text: a longer document is cut at paragraphs, lines or spaces", ge=1)] = (
        20000
    )
    part: Annotated[
        str | None,
        setting("I/N: this process makes the I-th of N parts (from 0)", null="torchrun's rank, else everything"),
    ] = None
    hashes: Annotated[
        bool,
        setting("KEY.json gets hashes of image and text, by which `liquid data filter` finds near-duplicates"),
    ] = True
    shard_size: Annotated[int, setting("rows of the source that one tar is made of", ge=1)] = 1024
    precision: Annotated[
        Literal["fp32", "bf16"],
        setting("fp32: the published codes; bf16: faster, some codes differ (docs/tokenize.md has the figures)"),
    ] = "fp32"
    batch_size: Annotated[
        str, setting("images encoded together; auto: the fastest for this image tokenizer, size and device")
    ] = "auto"
    compile: Annotated[bool, setting("torch.compile, on a GPU")] = False
    workers: Annotated[
        int | None,
        setting(
            "processes that read, crop and, on a CPU, encode; 0: none, all in the main process", ge=0, null="one a core"
        ),
    ] = None
    device: Annotated[str, setting("auto: a GPU where there is one; else cpu, cuda, cuda:N")] = "auto"
    overwrite: Annotated[bool, setting("a set made with other settings, or of other images, may be replaced")] = False
    wait: Annotated[
        float,
        setting(
            "seconds that images out of reach are waited for before the job ends (a network, a folder that was there); "
            "0: they count as missing",
            ge=0,
        ),
    ] = 120.0
    retry_dropped: Annotated[bool, setting("make shards again in which rows were dropped that can be used now")] = False
    max_bad: Annotated[float, setting("share of unusable rows past which the job fails", ge=0, le=1)] = 0.05
    allow_broken_files: Annotated[
        bool, setting("use what can be read of files that break off; else such a file ends the job before it begins")
    ] = False
    progress: Annotated[bool, setting("a progress bar")] = True
    options: Annotated[dict[str, Any], setting("arguments of a source of your own")] = field(default_factory=dict)

    def check(self, key: str) -> None:
        n = self.batch_size
        for name in self.keep or ():
            require(
                name.partition(".")[0] not in OWN_KEYS and all(name.split(".")),
                f"{key}keep={name}: KEY.json has {name} of its own, of the sample as it is tokenized; leave it out",
            )
        require(
            n == "auto" or (n.isdecimal() and int(n) > 0),
            f"{key}batch_size={n}: must be 1 or more, or auto for the fastest",
        )
        require(
            self.crop == "multiratio" or not self.sizes,
            f"{key}sizes: only {key}crop=multiratio has a list of sizes, not {self.crop}",
        )
        require(
            self.crop != "none" or self.size is None,
            f"{key}size={self.size}: {key}crop=none takes images as they are; use center or multiratio",
        )


@dataclass
class TokenizeJob(Section):
    """Images and texts into shards, images as codes of the image tokenizer (docs/tokenize.md)."""

    seed: Annotated[int, setting("decides the mirrored and shifted copies", ge=0, le=2**63 - 1)] = 0
    vq: VQSettings = field(default_factory=VQSettings)
    tokenize: TokenizeSettings = field(default_factory=TokenizeSettings)
    log: LogConfig = field(default_factory=LogConfig)
