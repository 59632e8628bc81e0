"""The autograd node: z -> T views of z. Its one backward receives the gradients of all tasks at once.

Shapes: T tasks, B samples, D representation width, N = B * D entries of z on this rank.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paretrain.gram import gram


class Weighed(NamedTuple):
    """How a node combines the tasks' gradients; the same on all ranks.

    Attributes:
        alpha_T: float64, on the CPU.
        dropped: the tasks whose gradients must not be used: they may be NaN, and 0 · NaN is NaN.
    """

    alpha_T: Tensor
    dropped: list[int]


class Weigher(Protocol):
    """Finds α for a node, inside its backward.

    Attributes:
        found: α where it is known already, as in the second pass of a window; else None.
    """

    found: Weighed | None

    def receive(self, gram_TT: Tensor) -> Weighed:
        """Turn this rank's Gram matrix (float64; the callee may overwrite it) into α. May be collective."""
        ...


def fan_out(z: Tensor, num_tasks: int, weigher: Weigher) -> tuple[Tensor, ...]:
    """Give every task its own view of the representation.

    Forward is the identity and copies nothing. Backward runs once, after the heads of all tasks, gets α from `weigher`
    and hands Σ α_t g_t to the encoder. A view that no loss used contributes zeros.
    """
    views: tuple[Tensor, ...] = _Split.apply(z, num_tasks, weigher)  # type: ignore[no-untyped-call]
    return views


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, num_tasks: int, weigher: Weigher) -> tuple[Tensor, ...]:
        ctx.weigher = weigher
        return tuple(z.view_as(z) for _ in range(num_tasks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weigher: Weigher = ctx.weigher
        gradients_TN = torch.stack([gradient.reshape(-1) for gradient in gradients])
        alpha_T, dropped = weigher.found or weigher.receive(gram(gradients_TN))
        if dropped:
            gradients_TN[dropped] = 0
        return (alpha_T.to(gradients_TN) @ gradients_TN).view_as(gradients[0]), None, None
