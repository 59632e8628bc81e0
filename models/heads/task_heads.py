"""The heads of all tasks as one module, apart or stacked.

Shapes: B samples, T tasks, C outputs a task, D representation width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BalancerLike(Protocol):
    """What stands between encoder and heads while training: `trainer.Balancer`, or anything with its two methods."""

    def split(self, z: Tensor) -> Sequence[Tensor]:
        """Give z's T views, in the order of the tasks."""
        ...

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None) -> Tensor:
        """Apply the first linear layer of T stacked heads to z: (B, T, C)."""
        ...


class SeparateHeads(nn.ModuleList):
    """T heads of any kind, in task order."""

    def forward(self, z: Tensor, balancer: BalancerLike | None) -> list[Tensor]:
        """Give each head its view of z; one output a task."""
        views = balancer.split(z) if balancer else [z] * len(self)
        return [head(view) for head, view in zip(self, views, strict=True)]


class _Stack(nn.Module):
    """The parameters of T linear layers of equal shape; copies, so that the stack starts as the layers would."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight_TCD = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias_TC = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))


class SharedLinear(_Stack):
    """T linear layers on the same input."""

    def forward(self, z_BD: Tensor, balancer: BalancerLike | None) -> Tensor:
        """Apply every task's layer to z: (B, T, C)."""
        return shared_linear(z_BD, self.weight_TCD, self.bias_TC, balancer)


def shared_linear(z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor, balancer: BalancerLike | None) -> Tensor:
    """Apply T linear layers to the same input, through the balancer if there is one: (B, T, C)."""
    if balancer:
        return balancer.linear(z_BD, weight_TCD, bias_TC)
    outputs_BN = F.linear(z_BD, weight_TCD.flatten(0, 1), bias_TC.flatten())
    return outputs_BN.unflatten(1, bias_TC.shape)


class BatchedLinear(_Stack):
    """T linear layers, each on an input of its own."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply each task's layer to that task's input: (B, T, C)."""
        outputs_TBC = torch.baddbmm(self.bias_TC[:, None], x_BTD.transpose(0, 1), self.weight_TCD.mT)
        return outputs_TBC.transpose(0, 1)


class StackedHeads(nn.Module):
    """T heads of the same layers as one, each linear layer of which is one batched product.

    Args:
        heads: what to stack: linear layers, the first of them in front, and layers without parameters. A stack starts
            with the parameters that the heads have, and draws other dropout masks than they would.
    """

    def __init__(self, heads: Sequence[nn.Sequential]) -> None:
        super().__init__()
        first, *rest = zip(*heads, strict=True)
        self.first = SharedLinear(first)
        stacked = (BatchedLinear(same) if isinstance(same[0], nn.Linear) else same[0] for same in rest)
        self.rest = nn.Sequential(*stacked)

    def forward(self, z_BD: Tensor, balancer: BalancerLike | None) -> Tensor:
        """All tasks' outputs: (B, T, C)."""
        outputs_BTC: Tensor = self.rest(self.first(z_BD, balancer))
        return outputs_BTC
