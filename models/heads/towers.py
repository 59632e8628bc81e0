"""Small Towers: a second, smaller head for each task in training (Wang et al. 2020, arXiv 2008.05808).

A tower reads the same z and learns the same labels as the head of its task, and its loss is added to that of the task:
L_t + γ L_t^tower. So there are T gradients to balance, not 2T. A tower that is too small for its task makes the encoder
represent what the task needs in a simple form. Evaluation uses the heads alone.

Shapes: T tasks, B samples, C outputs per task, D representation width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.heads.penalised import PenalisedOutputs
from models.heads.task_heads import BalancerLike, SeparateHeads, StackedHeads, shared_linear
from models.tasks import Task, task_losses

Heads = TypeVar("Heads", SeparateHeads, StackedHeads)


@dataclass(frozen=True)
class Tower:
    """A second head to build for each task.

    Attributes:
        head: a name in HEADS or a class or function, as for the head. The authors' towers are linear.
        options: its keyword arguments.
        weight: γ, the factor of the tower's loss in its task's loss.
    """

    head: str | Callable[..., nn.Module] = "linear"
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


class TowerOutputs(NamedTuple):
    """The outputs of a model with towers in training.

    Attributes:
        heads: (B, T, C) if the heads are stacked, otherwise a list with one output per task.
        towers: the outputs of the towers, in the same form.
        weight: γ.
    """

    heads: Tensor | list[Tensor]
    towers: Tensor | list[Tensor]
    weight: float


class HeadsWithTowers(nn.Module):
    """Hold the heads and the towers of all tasks.

    Args:
        heads: the heads of all tasks, in task order.
        towers: the towers of all tasks, in task order; stacked if the heads are.
        weight: γ.
    """

    def __init__(self, heads: Heads, towers: Heads, weight: float) -> None:
        super().__init__()
        self.main: SeparateHeads | StackedHeads = heads
        self.towers: SeparateHeads | StackedHeads = towers
        self.weight = weight

    def forward(self, z: Tensor, balancer: BalancerLike | None) -> TowerOutputs | Tensor | list[Tensor]:
        """Return the outputs of heads and towers in training, and those of the heads alone in evaluation."""
        if not self.training:
            heads_alone: Tensor | list[Tensor] = self.main(z, balancer)
            return heads_alone
        both: Callable[..., tuple[Any, Any]] = _stacked if isinstance(self.main, StackedHeads) else _separate
        main, towers = both(self.main, self.towers, z, balancer)
        return TowerOutputs(main, towers, self.weight)


def training_losses(
    tasks: Sequence[Task],
    outputs: TowerOutputs | PenalisedOutputs | Tensor | Sequence[Tensor],
    targets: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the training loss of every task as sum and count: `task_losses`, plus those of towers or a penalty."""
    if isinstance(outputs, PenalisedOutputs):
        sums_T, counts_T = task_losses(tasks, outputs.heads, targets)
        # Over all ranks and micro-batches the counts add up to what the sums are divided by.
        return sums_T + counts_T * outputs.penalty_T, counts_T
    if not isinstance(outputs, TowerOutputs):
        return task_losses(tasks, outputs, targets)
    sums_T, counts_T = task_losses(tasks, outputs.heads, targets)
    tower_sums_T, _ = task_losses(tasks, outputs.towers, targets)
    return sums_T + outputs.weight * tower_sums_T, counts_T


def _separate(
    heads: SeparateHeads, towers: SeparateHeads, z: Tensor, balancer: BalancerLike | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Give the head and the tower of a task the same view of z, which sums both gradients."""
    views = balancer.split(z) if balancer else [z] * len(heads)
    return heads.outputs(views), towers.outputs(views)


def _stacked(
    heads: StackedHeads, towers: StackedHeads, z_BD: Tensor, balancer: BalancerLike | None
) -> tuple[Tensor, Tensor]:
    """Compute both first layers as one product, with the outputs of head and tower side by side along C."""
    first = heads.first, towers.first
    weight_TCD = torch.cat([layer.weight_TCD for layer in first], dim=1)
    bias_TC = torch.cat([layer.bias_TC for layer in first], dim=1)
    both_BTC = shared_linear(z_BD, weight_TCD, bias_TC, balancer)
    head_BTC, tower_BTC = both_BTC.split([layer.bias_TC.shape[1] for layer in first], dim=2)
    return heads.rest(head_BTC), towers.rest(tower_BTC)
