"""How a folder stores what the model holds in one piece: transformers' conversion mapping, on names and shapes alone.

Published folders of mixtures of experts (Qwen3-MoE, Mixtral) have a tensor for each expert and projection; the model
has one for all experts of a layer. transformers states for each model type which tensors are stacked and joined into
which parameter, and does so with whole tensors. Here the same statement says where a stored tensor lies in the
parameter, so that a rank can read the part that it holds and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from liquid_train.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A stored tensor's place in a parameter: offset and shape, by the parameter's dimensions."""

    name: str
    offset: Shape
    shape: Shape
    stacked: int | None = None  # a dimension of size 1 that the stored tensor lacks


@dataclass(frozen=True)
class Block:
    """Pieces that fill a box of this shape."""

    shape: Shape
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, name: str, shape: Shape) -> Block:
        """One stored tensor."""
        return cls(shape, (Piece(name, (0,) * len(shape), shape),))


def blocks_of(model: PreTrainedModel, stored: Mapping[str, Shape]) -> dict[str, Block]:
    """What fills each parameter that the folder has, by the parameter's name; stored: its tensors' shapes by name.

    A tensor that has a parameter's own name is that parameter. Raises UserError where transformers would join tensors
    in another way than by stacking and concatenating.
    """
    held = {name for name, _ in model.named_parameters()}
    blocks = {name: Block.of(name, shape) for name, shape in stored.items() if name in held}
    if len(blocks) == len(held):
        return blocks
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    sources: dict[str, dict[str, list[str]]] = {}  # parameter -> pattern -> stored names, in transformers' order
    for name in sorted(stored, key=dot_natural_key):
        parameter, pattern = rename_source_key(name, renamings, converters)
        if parameter in held and parameter not in blocks:
            sources.setdefault(parameter, {}).setdefault(pattern or "", []).append(name)
    for parameter, names in sources.items():
        if "" in names:  # renamed only
            blocks[parameter] = Block.of(names[""][0], stored[names[""][0]])
        else:
            blocks[parameter] = _converted(by_pattern[next(iter(names))], names, stored, parameter)
    return blocks


def _converted(
    converter: WeightConverter, names: dict[str, list[str]], stored: Mapping[str, Shape], parameter: str
) -> Block:
    """What the converter's operations would make of the tensors that match its patterns."""
    held = {pattern: [Block.of(name, stored[name]) for name in found] for pattern, found in names.items()}
    for operation in converter.operations:
        if type(operation) is MergeModulelist:
            held = {pattern: [_stack(blocks, operation.dim)] for pattern, blocks in held.items()}
        elif type(operation) is Concatenate and operation.num_shards_attribute is None:
            in_order = [block for pattern in converter.source_patterns for block in held.get(pattern, ())]
            held = {parameter: [_concatenate(in_order, operation.dim)]}
        else:
            raise UserError(
                f"{parameter}: transformers makes it from {next(iter(names.values()))[0]} by "
                f"{type(operation).__name__}, which cannot be read rank by rank; choose another model"
            )
    ((block,),) = held.values()
    return block


def _stack(blocks: list[Block], dim: int) -> Block:
    """Blocks of single tensors along a new dimension."""
    pieces = tuple(
        Piece(piece.name, _insert(piece.offset, dim, i), _insert(piece.shape, dim, 1), stacked=dim)
        for i, block in enumerate(blocks)
        for piece in block.pieces
    )
    return Block(_insert(_common(blocks), dim, len(blocks)), pieces)


def _concatenate(blocks: list[Block], dim: int) -> Block:
    """Blocks after one another along a dimension."""
    ends = list(accumulate(block.shape[dim] for block in blocks))
    pieces = tuple(
        Piece(piece.name, _add(piece.offset, dim, end - block.shape[dim]), piece.shape, piece.stacked)
        for block, end in zip(blocks, ends, strict=True)
        for piece in block.pieces
    )
    shape = _common(blocks)
    return Block((*shape[:dim], ends[-1], *shape[dim + 1 :]), pieces)


def _common(blocks: list[Block]) -> Shape:
    """What all of them fill: smaller than the parameter needs where one lacks an expert."""
    return tuple(map(min, zip(*(block.shape for block in blocks), strict=True)))


def _insert(sizes: Shape, dim: int, size: int) -> Shape:
    return (*sizes[:dim], size, *sizes[dim:])


def _add(sizes: Shape, dim: int, size: int) -> Shape:
    return (*sizes[:dim], sizes[dim] + size, *sizes[dim + 1 :])


def as_stored(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters by name -> tensors as the published folders of this model type name and cut them.

    Meta tensors give the shapes. Where transformers cuts a stored tensor into several parameters, they stay as they are
    held: those cannot be joined one at a time, and transformers reads both forms.
    """
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    one_to_one = all(len(c.target_patterns) == 1 for c in conversions if isinstance(c, WeightConverter))
    for name, tensor in tensors:
        if conversions and one_to_one:
            yield from revert_weight_conversion(model, {name: tensor}).items()
        else:
            yield name, tensor
