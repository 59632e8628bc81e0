"""The heads of all tasks as one module, separate or stacked.

Shapes: B samples, T tasks, C outputs per task, D representation width.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.levels import Z, taken


class BalancerLike(Protocol):
    """Stands between encoder and heads in training: `paretrain.Balancer`, or anything with these two methods."""

    def split(self, z: Any) -> Sequence[Any]:
        """Return T views of z, in the order of the tasks; of a tuple of tensors, T tuples."""
        ...

    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None) -> Tensor:
        """Apply the first linear layer of T stacked heads to z: (B, T, C)."""
        ...


class SeparateHeads(nn.ModuleList):
    """Hold T heads of any kind, in task order.

    Args:
        heads: one for each task.
        levels: which tensor of a representation of several each head takes; None: all of them.
    """

    def __init__(self, heads: Iterable[nn.Module], levels: Sequence[int | None] | None = None) -> None:
        super().__init__(heads)
        self.levels = [None] * len(self) if levels is None else list(levels)

    def forward(self, z: Z, balancer: BalancerLike | None) -> list[Tensor]:
        """Apply each head to its view of z; return one output per task."""
        return self.outputs(balancer.split(z) if balancer else [z] * len(self))

    def outputs(self, views: Sequence[Z]) -> list[Tensor]:
        """Apply each head to its view of z."""
        return [head(taken(view, level)) for head, view, level in zip(self, views, self.levels, strict=True)]


class _Stack(nn.Module):
    """Hold copies of the parameters of T linear layers of equal shape."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight_TCD = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias_TC = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))


class SharedLinear(_Stack):
    """Apply T linear layers to the same input."""

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
    """Apply T linear layers, each to its own input."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply each task's layer to that task's input: (B, T, C)."""
        outputs_TBC = torch.baddbmm(self.bias_TC[:, None], x_BTD.transpose(0, 1), self.weight_TCD.mT)
        return outputs_TBC.transpose(0, 1)


class StackedHeads(nn.Module):
    """Compute T heads that have the same layers at once, with one batched product for each linear layer.

    Args:
        heads: the heads to stack. Their first layer is linear; the others are linear or have no parameters. A stack
            starts with the parameters of the heads, but draws other dropout masks than they would.
    """

    def __init__(self, heads: Sequence[nn.Sequential]) -> None:
        super().__init__()
        first, *rest = zip(*heads, strict=True)
        self.first = SharedLinear(first)
        stacked = (BatchedLinear(same) if isinstance(same[0], nn.Linear) else same[0] for same in rest)
        self.rest = nn.Sequential(*stacked)

    def forward(self, z_BD: Tensor, balancer: BalancerLike | None) -> Tensor:
        """Return the outputs of all tasks: (B, T, C)."""
        outputs_BTC: Tensor = self.rest(self.first(z_BD, balancer))
        return outputs_BTC


def state_of(heads: SeparateHeads | StackedHeads, task: int) -> dict[str, Tensor]:
    """Return one task's parameters, which share their memory, by the names that its head has by itself: `0.weight`."""
    if isinstance(heads, SeparateHeads):
        return dict(heads[task].state_dict())
    state = {}
    for place, layer in enumerate([heads.first, *heads.rest]):
        if isinstance(layer, _Stack):
            state[f"{place}.weight"] = layer.weight_TCD.detach()[task]
            state[f"{place}.bias"] = layer.bias_TC.detach()[task]
    return state
