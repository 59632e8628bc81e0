"""Task gradients in the space of the encoder's parameters: the problem that the representation's bounds.

T backwards and T x P numbers a step, which is what MGDA-UB exists to avoid. Here to compare with it, and to watch it:
the paper's claim that an MGDA-UB step descends on every task (Theorem 1b) does not hold in general.

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
    """How the losses change, to first order, along the step that α makes: θ moves by -Σ α_t ∂L_t/∂θ.

    Attributes:
        slopes_T: (M_θ α)_t, by which L_t falls for a step of length 1; a task with a negative one ascends.
        worst: the smallest of them, over the step's squared length: 1 at the min-norm point of parameter space, which
            falls alike on every task in its support; negative where some task ascends.
        num_ascending: tasks that ascend.
    """

    slopes_T: np.ndarray
    worst: float
    num_ascending: int


def task_gradients(means_T: Tensor, parameters: Sequence[nn.Parameter], ranks: Ranks) -> Tensor:
    """The gradient of every task's global mean loss, on every rank. Collective: one all-reduce of T x P numbers.

    In parameter space gradients must be added over the ranks BEFORE any inner product; a sum of the ranks' own Gram
    matrices is wrong here. The graph behind `means_T` is kept.

    Args:
        means_T: this rank's part of the global mean losses (its loss sums over the global counts).
        parameters: the P parameters, as a list of tensors.
        ranks: the processes that share the batch.

    Returns:
        (T, P), the parameters' own precision.
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
    """Where the step of `alpha_T` takes the active tasks, in the space of the parameters."""
    falls_T = gram(gradients_TP).cpu().numpy() @ alpha_T
    falls_A = falls_T[active_T]
    length = float(alpha_T @ falls_T)
    worst = float(falls_A.min() / length) if falls_A.size and length > 0 else 0.0
    return Slopes(falls_T, worst, int((falls_A < 0).sum()))
