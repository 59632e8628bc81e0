"""The autograd node: z -> T views of z; its one backward receives the gradients of all tasks at once.

Shapes: T tasks, B samples, D representation width, N = B * D entries of z on this rank.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.balance.gram import gram


class Weighed(NamedTuple):
    """What the split does with the tasks' gradients; the same on all ranks.

    Attributes:
        alpha_T: float64, on the CPU.
        left_out: the tasks whose gradients are not to be touched: they may be NaN, and 0 · NaN is NaN.
    """

    alpha_T: Tensor
    left_out: list[int]


Weigh = Callable[[Callable[[], Tensor]], Weighed]
"""What computes the (T, T) float64 Gram matrix of this rank, given away, for those who ask -> what to do."""


def fan_out(z: Tensor, num_tasks: int, weigh: Weigh) -> tuple[Tensor, ...]:
    """Give every task its own view of the representation.

    Forward is the identity and copies nothing. Backward runs once, after the heads of all tasks, asks `weigh` for α and
    hands Σ α_t g_t to the encoder. A view that no loss used contributes zeros.
    """
    views: tuple[Tensor, ...] = _Split.apply(z, num_tasks, weigh)
    return views


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, num_tasks: int, weigh: Weigh) -> tuple[Tensor, ...]:
        ctx.weigh = weigh
        return tuple(z.view_as(z) for _ in range(num_tasks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradients_TN = torch.stack([gradient.reshape(-1) for gradient in gradients])
        alpha_T, left_out = ctx.weigh(lambda: gram(gradients_TN))
        if left_out:
            gradients_TN[left_out] = 0
        return (alpha_T.to(gradients_TN) @ gradients_TN).view_as(gradients[0]), None, None
