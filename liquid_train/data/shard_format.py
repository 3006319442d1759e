"""What a shard holds (DESIGN section 4): the files of one sample in a webdataset tar, and how they are decoded."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import tokenize
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np

from liquid_train.data.sample_schema import fault_of
from liquid_train.text_normalizer import normalize_json

log = logging.getLogger(__name__)

INDEX_NAME = "index.json"
INDEX_KIND = "wids-shard-index-v1"
# What numpy raises for a damaged npy: its header is Python source, and a wrong shape in it can ask for any amount of
# memory.
NPY_ERRORS = (ValueError, TypeError, OSError, EOFError, SyntaxError, tokenize.TokenError, OverflowError, MemoryError)
# What tarfile raises for a damaged header: its numbers can be of any size, and long names nest.
TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
REPEATED = "/repeated"  # in place of an extension, which has no slash: a file of the sample stands twice in the tar
# What JSON that needs normalizing has: an escape, or a BOM.
SUSPICIOUS = (b"\\u", b"\xef\xbb\xbf")


class Sample(TypedDict, total=False):
    """One sample. An image has codes, and text where it has a caption; a text sample has text or ids,
    and no codes."""

    key: str
    codes: np.ndarray  # [rows, columns] of VQ codes
    text: str
    ids: np.ndarray  # [n] of token ids, in place of a text
    info: dict[str, Any]  # KEY.json


class DamagedSample(ValueError):
    """A part of a sample is damaged or missing: the reason, by which it is counted."""


def split_name(name: str) -> tuple[str, str]:
    """A tar member's name -> (key, extension): as webdataset has it, the key ends at the first dot after the last
    slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def add_file(files: dict[str, bytes], extension: str, content: bytes) -> None:
    """Add a file to those of its sample. One that stands twice is not replaced but marked, which decode_sample
    finds."""
    files[REPEATED if extension in files else extension] = content


def group_files(data: bytes) -> dict[str, dict[str, bytes]]:
    """Bytes of a tar, or of a part of one -> {key: {extension: content}} in order; what cannot be read is left out."""
    groups: dict[str, dict[str, bytes]] = {}
    try:
        # ignore_zeros: goes on after a damaged header
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=True) as tar:
            for member in tar:
                if not member.isreg() or member.issparse():  # a link may lead anywhere
                    continue
                # extractfile's file object takes as long as all else
                content = data[member.offset_data : member.offset_data + member.size]
                if len(content) < member.size:
                    break
                key, extension = split_name(member.name)
                add_file(groups.setdefault(key, {}), extension, content)
    except TAR_ERRORS as error:
        log.debug("the tar ends early: %s", error)
    return groups


def decode_sample(key: str, files: dict[str, bytes], codebook_size: int | None = None) -> Sample:
    """Files of one sample -> the sample. Raises DamagedSample with the reason when a part is damaged or missing."""
    if REPEATED in files:
        raise DamagedSample("a file of the sample stands twice in the tar")
    info = decode_info(files.get("json"))
    sample: Sample = {"key": key, "info": info}
    if info.get("width") is not None or "codes.npy" in files:
        sample["codes"] = decode_codes(files.get("codes.npy"), codebook_size)
    if "txt" in files:
        try:
            sample["text"] = files["txt"].decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedSample("text is not UTF-8") from None
    elif "ids.npy" in files:
        sample["ids"] = decode_ids(files["ids.npy"])
    elif "codes" not in sample and not info.get("messages"):
        raise DamagedSample("neither codes nor text nor messages")
    return sample


def decode_info(content: bytes | None) -> dict[str, Any]:
    """KEY.json, whose texts are normalized and whose known keys are as sample_schema.py has them. Raises DamagedSample
    with the reason."""
    if content is None:
        raise DamagedSample("no json")
    try:
        info = json.loads(content)
        if any(mark in content for mark in SUSPICIOUS):
            info = normalize_json(info)
    except ValueError:
        raise DamagedSample("json does not parse") from None
    except RecursionError:
        raise DamagedSample("json is nested too deeply") from None
    if not isinstance(info, dict):
        raise DamagedSample("json is not an object")
    if fault := fault_of(info):
        raise DamagedSample(fault)
    return info


def fields_of(sample: Sample) -> dict[str, Any]:
    """A sample as the tasks take it: what KEY.json holds, and `text`, `ids` and `codes` where there are such files,
    whatever KEY.json has under these names."""
    fields: dict[str, Any] = {**sample["info"], **sample}
    for name in ("text", "ids", "codes"):
        if name not in sample:
            fields.pop(name, None)
    return fields


def decode_codes(content: bytes | None, codebook_size: int | None = None) -> np.ndarray:
    """KEY.codes.npy -> [rows, columns] of unsigned integers, all of them in the codebook. Raises DamagedSample with the
    reason."""
    if content is None:
        raise DamagedSample("no codes")
    try:
        start = 10 + int.from_bytes(content[8:10], "little")
        layout = codes_layout(content[:start])
        if layout:
            codes = np.frombuffer(content, layout[0], layout[1] * layout[2], start).reshape(layout[1:]).copy()
        else:
            codes = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except NPY_ERRORS:
        raise DamagedSample("codes do not parse") from None
    if codes.dtype.kind != "u" or codes.ndim != 2 or not codes.size:
        raise DamagedSample("codes are not a grid of unsigned integers")
    if codebook_size is not None and int(codes.max()) >= codebook_size:
        raise DamagedSample("code beyond the codebook")
    return codes


def decode_ids(content: bytes) -> np.ndarray:
    """KEY.ids.npy -> [n] of unsigned integers. Raises DamagedSample with the reason."""
    try:
        ids = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except NPY_ERRORS:
        raise DamagedSample("ids do not parse") from None
    if ids.dtype.kind != "u" or ids.ndim != 1 or not ids.size:
        raise DamagedSample("ids are not a row of unsigned integers")
    return np.asarray(ids)


@lru_cache(maxsize=256)
def codes_layout(header: bytes) -> tuple[np.dtype[Any], int, int] | None:
    """(dtype, rows, columns) by the header of an npy of version 1; None where that is not the plain layout of codes.

    A header is Python source, which takes longer to parse than all codes; images of a size share one. Raises what numpy
    raises (NPY_ERRORS).
    """
    if header[:8] != np.lib.format.magic(1, 0):
        return None
    file = io.BytesIO(header)
    file.seek(8)
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    if by_column or dtype.kind != "u" or len(shape) != 2 or min(shape) < 1:
        return None
    return dtype, *shape
