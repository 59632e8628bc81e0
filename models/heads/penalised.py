"""Linear heads with a penalty on their weights: what the kinds of shared heads have in common.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from models.heads.task_heads import BalancerLike, StackedHeads


class PenalisedOutputs(NamedTuple):
    """The result of a model with shared heads while training: outputs (B, T, C), and each task's penalty (T,)."""

    heads: Tensor
    penalty_T: Tensor


class PenalisedHeads(StackedHeads, ABC):
    """T linear heads that are held together."""

    def forward(self, z_BD: Tensor, balancer: BalancerLike | None) -> Tensor | PenalisedOutputs:  # type: ignore[override]
        """Return outputs and penalties while training, the outputs alone at evaluation."""
        outputs_BTC = super().forward(z_BD, balancer)
        return PenalisedOutputs(outputs_BTC, self.penalties()) if self.training else outputs_BTC

    @abstractmethod
    def penalties(self) -> Tensor:
        """Return P_t of each task, in float32 at least."""

    def _weight(self) -> Tensor:
        return self.first.weight_TCD.to(torch.promote_types(self.first.weight_TCD.dtype, torch.float32))
