"""The autograd node: z -> T views of z; its one backward receives the gradients of all tasks at once.

Shapes: T tasks, B samples, D representation width, N = B * D entries of z on this rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ENTRIES = 65_536
"""Entries of z that are in memory as float64 at a time."""

Combine = Callable[[Tensor], Tensor]
"""(T, N) task gradients -> (N,) the gradient that flows on into the encoder."""


def split(z: Tensor, num_tasks: int, combine: Combine) -> tuple[Tensor, ...]:
    """Give every task its own view of the representation.

    Forward is the identity and copies nothing. Backward runs once, after the heads of all tasks, calls
    `combine(gradients_TN)` and hands its answer to the encoder. A view that no loss used contributes zeros.
    """
    views: tuple[Tensor, ...] = _Split.apply(z, num_tasks, combine)
    return views


def gram(gradients_TN: Tensor) -> Tensor:
    """Gram matrix of the rows: float64, (T, T).

    Products of float32 numbers are exact in float64. A sum in float32 would leave dependent gradients with a matrix that
    is indefinite by 1e-7, and its minimum would be noise.
    """
    total_TT = gradients_TN.new_zeros((len(gradients_TN), len(gradients_TN)), dtype=torch.float64)
    for chunk_Tn in gradients_TN.split(CHUNK_ENTRIES, dim=1):
        wide_Tn = chunk_Tn.double()
        total_TT += wide_Tn @ wide_Tn.T
    return total_TT


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, num_tasks: int, combine: Combine) -> tuple[Tensor, ...]:
        ctx.combine = combine
        return tuple(z.view_as(z) for _ in range(num_tasks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradients_TN = torch.stack([gradient.reshape(-1) for gradient in gradients])
        return ctx.combine(gradients_TN).view_as(gradients[0]), None, None
