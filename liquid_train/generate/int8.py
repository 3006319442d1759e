"""int8 weights for inference: the linear modules of the layers with one byte a weight and one scale an output.

Symmetric and rounded to nearest, as torchao's Int8WeightOnlyConfig: weight = int8 * scale, scale = max |row| / 127.
Activations, norms, embedding and head stay what they are. A product converts the weights before it multiplies, so that
any device and dtype can do it (torch's own kernel, _weight_int8pack_mm, was no faster for 16 rows in bf16, and thirty
times slower in fp32).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """weight int8 [outputs, inputs], scale fp32 [outputs], bias as it was."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows = linear.weight.detach().float()
        scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # a row of zeros stays zeros
        self.weight = nn.Parameter((rows / scale[:, None]).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.scale: Tensor
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., inputs] -> [..., outputs] in x's dtype."""
    found = (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)
    return found if bias is None else found + bias


@torch.no_grad()
def quantize(model: PreTrainedModel) -> None:
    """Exchange the linear modules of the layers, one after another."""
    for parent in list(model.base_model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
