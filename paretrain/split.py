"""The autograd node: z -> T views of z. Its one backward receives the gradients of all tasks at once.

Shapes: T tasks, P tensors that make up z, N entries of one of them on this rank.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paretrain.factored import Factored
from paretrain.gram import gram, norms


class Weighed(NamedTuple):
    """How a node combines the tasks' gradients; the same on all ranks.

    Attributes:
        alpha_T: float64, on the CPU.
        dropped: the tasks whose gradients must not be used: they may be NaN, and 0 · NaN is NaN.
    """

    alpha_T: Tensor
    dropped: list[int]


Combine = Callable[[Weighed], Sequence[Tensor]]
"""Returns Σ α_t g_t for each tensor of z."""


class Weigher(Protocol):
    """Finds α for a node, inside its backward.

    Attributes:
        found: α where it is known already, as in the second pass of a window; else None.
        needs_gram: whether α is to be found in this step. If not, the diagonal of the Gram matrix is enough.
    """

    @property
    def found(self) -> Weighed | None:
        """See above."""
        ...

    @property
    def needs_gram(self) -> bool:
        """See above."""
        ...

    def multiplies(self, num_outputs: int, width: int) -> bool:
        """Return whether `receive` takes a Gram matrix of stacked heads as its factors.

        Args:
            num_outputs: of a head's first layer.
            width: of the representation.
        """
        ...

    def receive(self, gram_TT: Tensor | Factored, combine: Combine) -> Weighed | None:
        """Turn this rank's Gram matrix, its diagonal or its factors into α. May be collective.

        Args:
            gram_TT: float64; the callee may overwrite it.
            combine: see `Combine`.

        Returns:
            α; or None where it is not known yet. The weigher then calls `combine` when it is, and gives the result to
            the encoder itself.
        """
        ...


def fan_out(zs: Sequence[Tensor], num_tasks: int, weigher: Weigher) -> tuple[tuple[Tensor, ...], ...]:
    """Give every task its own view of each tensor of the representation: T tuples of P views.

    Forward is the identity and copies nothing. Backward runs once, after the heads of all tasks, gets α from `weigher`
    and hands Σ α_t g_t to the encoder. A view that no loss used contributes zeros.
    """
    if not torch.is_grad_enabled():
        return (tuple(zs),) * num_tasks
    views = _Split.apply(num_tasks, weigher, anchor(*zs), *zs)  # type: ignore[no-untyped-call]
    return tuple(views[start : start + len(zs)] for start in range(0, len(views), len(zs)))


def anchor(*zs: Tensor) -> Tensor | None:
    """Return what makes autograd run a node whose z needs no gradient, as that of a frozen encoder; else None."""
    return None if any(z.requires_grad for z in zs) else torch.zeros((), requires_grad=True)


def task_of(node: Any, output: int, weighers: Collection[Weigher]) -> int | None:
    """Return the task whose view is an output of an autograd node; None unless `fan_out` made it for a weigher."""
    is_own = getattr(node, "_forward_cls", None) is _Split and node.weigher in weighers
    return output // len(node.shapes) if is_own else None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num_tasks: int, weigher: Weigher, _: Tensor | None, *zs: Tensor) -> tuple[Tensor, ...]:
        ctx.weigher, ctx.shapes = weigher, [z.shape for z in zs]
        return tuple(z.view_as(z) for _ in range(num_tasks) for z in zs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weigher: Weigher = ctx.weigher
        shapes = ctx.shapes
        parts = [
            torch.stack([gradient.reshape(-1) for gradient in gradients[part :: len(shapes)]])
            for part in range(len(shapes))
        ]

        def combine(weighed: Weighed) -> list[Tensor]:
            return [_combined(part, weighed).view(shape) for part, shape in zip(parts, shapes, strict=True)]

        weighed = weigher.found or weigher.receive(_summed(gram if weigher.needs_gram else norms, parts), combine)
        return None, None, None, *(combine(weighed) if weighed else [None] * len(shapes))


def _summed(products: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Return the products of the tasks' gradients with respect to all parts: the sum of the parts' own."""
    total = products(parts[0])
    for gradients_TN in parts[1:]:
        total += products(gradients_TN).to(total.device)
    return total


def _combined(gradients_TN: Tensor, weighed: Weighed) -> Tensor:
    if weighed.dropped:
        gradients_TN[weighed.dropped] = 0
    return weighed.alpha_T.to(gradients_TN) @ gradients_TN
