"""Task gradients with respect to the encoder's parameters: the problem that MGDA-UB bounds (Sener & Koltun, eq. 4).

It takes T backwards and T x P numbers per step, the cost that MGDA-UB avoids. It serves to compare with MGDA-UB and to
monitor it: the paper's claim that an MGDA-UB step descends on every task (Theorem 1b) does not hold in general.

Shapes: T tasks, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paretrain.gram import gram
from paretrain.ranks import Ranks


@dataclass(frozen=True)
class Slopes:
    """First-order change of the losses along the step of α, in which θ moves by -Σ α_t ∂L_t/∂θ.

    Attributes:
        slopes_T: (M_θ α)_t, the decrease of L_t per unit of learning rate; negative if the loss of the task increases.
        worst: the smallest slope of an active task, divided by αᵀM_θα. It is 1 at the min-norm point of parameter
            space, where all losses in the support decrease alike, and negative if some loss increases.
        num_ascending: number of active tasks whose loss increases.
    """

    slopes_T: np.ndarray
    worst: float
    num_ascending: int


def task_gradients(means_T: Tensor, parameters: Sequence[nn.Parameter], ranks: Ranks) -> Tensor:
    """Return the gradient of every task's global mean loss, on every rank. Collective: one all-reduce of T x P numbers.

    In parameter space gradients must be summed over the ranks BEFORE any inner product; the sum of the ranks' own Gram
    matrices would be wrong. The graph behind `means_T` is kept.

    Args:
        means_T: this rank's part of the global mean losses (its loss sums divided by the global counts).
        parameters: the P parameters, as a list of tensors.
        ranks: the processes that share the batch.

    Returns:
        (T, P), in the precision of the parameters.
    """
    rows = []
    for mean in means_T.unbind():
        gradients = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
                    for gradient, parameter in zip(gradients, parameters, strict=True)
                ]
            )
        )
    gradients_TP = torch.stack(rows)
    return ranks.sum(gradients_TP).to(gradients_TP.device)


def slopes(gradients_TP: Tensor, alpha_T: np.ndarray, active_T: np.ndarray) -> Slopes:
    """Return how the step of `alpha_T` changes the losses of the active tasks.

    Args:
        gradients_TP: the result of `task_gradients`.
        alpha_T: the weights of the step.
        active_T: bool, the tasks to include in `worst` and `num_ascending`.
    """
    falls_T = gram(gradients_TP).cpu().numpy() @ alpha_T
    falls_A = falls_T[active_T]
    length = float(alpha_T @ falls_T)
    worst = float(falls_A.min() / length) if falls_A.size and length > 0 else 0.0
    return Slopes(falls_T, worst, int((falls_A < 0).sum()))
