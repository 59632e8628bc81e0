"""Linear heads that must be alike: minimise Σ_t L_t + λ/2 |w_0|² subject to |w_t - w_0|² ≤ ε for every task t.

This is learning under functional constraints (Cervino et al. 2022, arXiv 2210.15573: every task's function is close to
a central one, by a primal-dual method with a multiplier for each task), for linear heads on a white representation,
where E|f_t(z) - f_0(z)|² = |w_t - w_0|². The Lagrangian, with the multipliers μ_t ≥ 0 of the halved constraints, is

    Σ_t L_t + λ/2 |w_0|² + 1/2 Σ_t μ_t (|w_t - w_0|² - ε).

The heads descend on it with the optimizer of all parameters. w_0 = Σ_t μ_t w_t / (λ + Σ_t μ_t) is its minimum in closed
form, as for `SharedHeads`. After each step of the optimizer the multipliers ascend:
μ_t ← max(0, μ_t + η (|w_t - w_0|² - ε)).

The multipliers are a buffer, so that checkpoints hold them. They follow from the whole weights, which every rank has in
its forward under every strategy, so that they are the same on all ranks without an exchange.

Shapes: T tasks, C outputs a task, D representation width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads.penalised import PenalisedHeads


class ConstrainedHeads(PenalisedHeads):
    """Heads within a distance of what they have in common.

    Args:
        heads: linear heads, in task order.
        common: λ.
        constraint: ε, the largest |w_t - w_0|², summed over the outputs of a task.
        dual_rate: η.

    Attributes:
        multipliers_T: μ.
        distances_T: |w_t - w_0|² at the last forward in training; zeros before it.
    """

    multipliers_T: Tensor

    def __init__(self, heads: Sequence[nn.Sequential], common: float, constraint: float, dual_rate: float) -> None:
        super().__init__(heads)
        self.common = common
        self.constraint = constraint
        self.dual_rate = dual_rate
        self.register_buffer("multipliers_T", torch.zeros(len(heads)))
        self.distances_T = torch.zeros(len(heads))

    def penalties(self) -> Tensor:
        """Return P_t with Q = diag(μ) - μ μᵀ / (λ + Σ μ). Measure the distances."""
        weight_TCD = self._weight()
        multipliers_T11 = self.multipliers_T[:, None, None]
        common_CD = (multipliers_T11 * weight_TCD).sum(dim=0) / (self.common + self.multipliers_T.sum())
        own_TCD = weight_TCD - common_CD
        self.distances_T = own_TCD.detach().square().sum(dim=(1, 2))
        return 0.5 * (multipliers_T11 * weight_TCD * own_TCD).sum(dim=(1, 2))

    def ascend(self) -> None:
        """Move the multipliers by the distances of the last forward: once for each step of the optimizer."""
        excess_T = self.distances_T - self.constraint
        self.multipliers_T.add_(self.dual_rate * excess_T).clamp_(min=0)
