"""Initial rows of a pretrained model's embedding and head for image codes. Each rank computes only those it holds.

mean      all near the mean of the text rows: the usual choice for new words
normal    drawn as transformers draws the rows of an untrained model
codebook  as far apart as the text rows, in the arrangement of the VQ codebook: similar codes get similar rows
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from liquid_train.model.backbone import ROW_BLOCK, key_number, random_rows, rows_of
from liquid_train.vocabulary import Vocabulary

MEAN_NOISE = 1e-9  # variance of the noise, relative to that of the text rows


@dataclass(frozen=True)
class TextRows:
    """Mean and variance of every column over the text rows: fp64 [width], on the CPU."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, parameter: Tensor, count: int) -> TextRows:
        """Over the first `count` rows of a table. A collective of all ranks if it is sharded."""
        local, first = rows_of(parameter)
        sums = torch.zeros(2, parameter.shape[1], dtype=torch.float64, device=local.device)
        for rows in local[: max(0, min(count - first, len(local)))].split(ROW_BLOCK):
            wide = rows.double()
            sums += torch.stack([wide.sum(0), wide.square().sum(0)])
        if isinstance(parameter, DTensor):
            for dim, placement in enumerate(parameter.placements):
                if not placement.is_replicate():  # ranks along the other dimensions hold the same rows
                    dist.all_reduce(sums, group=parameter.device_mesh.get_group(dim))
        mean, square = sums.cpu() / count
        return cls(mean, (square - mean.square()).clamp(min=0))


@torch.no_grad()
def fill_image_rows(
    model: PreTrainedModel, vocabulary: Vocabulary, image_init: str, codebook: Tensor | None, seed: int
) -> None:
    """Fill the embedding's and the head's rows from the first image code on, including the spare rows of a padded
    vocabulary (Qwen2.5). The values do not depend on the number of ranks. Text rows are not touched.

    codebook: [codes, d], the image tokenizer's code vectors; only image_init=codebook needs them.
    """
    assert image_init in ("mean", "normal", "codebook"), image_init  # the config was checked
    tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, parameter in model.named_parameters():  # in the same order on all ranks: TextRows.of is a collective
        if id(parameter) not in tables:
            continue
        local, first = rows_of(parameter)
        text = TextRows.of(parameter, vocabulary.text_size)
        begin, end = max(vocabulary.image_start, first), first + len(local)
        if begin >= end:
            continue
        if image_init == "codebook":
            assert codebook is not None
            made = codebook_rows(text, codebook, begin - vocabulary.image_start, end - begin, (name, seed))
        elif image_init == "mean":
            made = mean_rows(text, begin, end - begin, (name, seed))
        else:
            std = float(getattr(model.config, "initializer_range", 0.02))
            made = random_rows((name, seed), begin, end - begin, parameter.shape[1:], std)
        local[begin - first :].copy_(made)


def mean_rows(text: TextRows, first: int, count: int, key: tuple[object, ...]) -> Tensor:
    """The mean of the text rows, with just enough noise to tell the rows apart: [count, width].

    Hewitt 2021 (nlp.stanford.edu/~johnhew/vocab-expansion.html): a new word with the mean row gets about the mean
    logit, so it takes little probability from the words that the model knows. transformers' mean_resizing draws from a
    normal with 1e-9 of the rows' covariance; only its diagonal is used here, which needs no width x width matrix. The
    mean is over the text rows only: the spare rows of a padded vocabulary were never trained.
    """
    noise = random_rows(key, first, count, text.mean.shape, 1.0)
    return text.mean + noise * (MEAN_NOISE * text.variance).sqrt()


def codebook_rows(text: TextRows, codebook: Tensor, first: int, count: int, key: tuple[object, ...]) -> Tensor:
    """Rows of codes first .. first+count-1: fp64 [count, width]; the mean of the text rows where there is no such code
    (spare rows).

    The centred codebook is multiplied by a fixed random matrix with orthonormal rows, which preserves distances (with
    orthonormal columns where the codebook is wider than the model), and scaled so that the rows are as far from the
    text rows' mean as the text rows are (root mean square).
    """
    width, embed_dim = len(text.mean), codebook.shape[1]
    centred = (codebook - codebook.double().mean(0)).cpu()
    projection = torch.empty(embed_dim, width, dtype=torch.float64)
    torch.nn.init.orthogonal_(projection, generator=torch.Generator().manual_seed(key_number(key)))
    covariance = centred.t() @ centred / len(centred)
    scale = (text.variance.sum() / (projection * (covariance @ projection)).sum()).sqrt()
    made = text.mean.repeat(count, 1)
    last = min(first + count, len(centred))
    for start in range(
        first // ROW_BLOCK * ROW_BLOCK, last, ROW_BLOCK
    ):  # in whole blocks, because a product's rounding depends on its shape
        block = centred[start : start + ROW_BLOCK] @ projection * scale
        begin, end = max(first, start), min(last, start + ROW_BLOCK)
        made[begin - first : end - first] += block[begin - start : end - start]
    return made
