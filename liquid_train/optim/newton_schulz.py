"""The orthogonal factor of a matrix, nearly: what Muon makes of a momentum."""

from __future__ import annotations

import torch
from torch import Tensor

# Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks (kellerjordan.github.io/posts/muon): five
# rounds bring singular values between 0.001 and 1 into 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
EPSILON = 1e-7  # torch.optim.Muon's: keeps a gradient of zeros from becoming NaN


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n, rows, columns] -> the same shape: U V^T of each matrix U S V^T, with singular values of about 1.

    Newton-Schulz iteration X <- a X + (b A + c A A) X with A = X X^T, on the shorter side, in `dtype`.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
