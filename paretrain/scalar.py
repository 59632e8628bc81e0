"""The scalar that `total` returns. Its node runs first in the backward and sees the factor the caller has given it."""

from typing import Any, Protocol

from torch import Tensor
from torch.autograd import Function


class Watcher(Protocol):
    """Is told of each backward when it begins."""

    def begin(self, factor: Tensor) -> None:
        """Take note that a backward begins.

        Args:
            factor: the gradient that arrives at the scalar, which is the factor by which the caller multiplied it:
                the scale of a GradScaler, one over the number of micro-batches, or 1. A tensor of no dimension.
        """
        ...


def watched(scalar: Tensor, watcher: Watcher) -> Tensor:
    """Return the same scalar, whose backward first calls `watcher.begin`."""
    same: Tensor = _Watched.apply(scalar, watcher)  # type: ignore[no-untyped-call]
    return same


class _Watched(Function):
    @staticmethod
    def forward(ctx: Any, scalar: Tensor, watcher: Watcher) -> Tensor:
        ctx.watcher = watcher
        return scalar.view_as(scalar)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        ctx.watcher.begin(factor)
        return factor, None
