"""Task gradients with respect to the encoder's parameters: the problem that MGDA-UB bounds (Sener & Koltun, eq. 4).

It takes T backwards per step, the cost that MGDA-UB avoids. It sees conflicts that MGDA-UB cannot: tasks that share no
sample have orthogonal gradients at the representation, whatever their gradients in the parameters. It also serves to
monitor MGDA-UB: the paper's claim that such a step descends on every task (Theorem 1b) does not hold in general.

Shapes: T tasks, G groups of tasks, P parameters, S of them on this rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paretrain.gram import gram
from paretrain.losses import Totals, means_of
from paretrain.ranks import Ranks
from paretrain.split import Weighed


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


@dataclass(frozen=True)
class ParameterStep:
    """A step of MGDA in parameter space whose gradients the caller keeps as shards; see `Balancer.parameter_step`.

    For each of `backwards`, run the backward of its scalar, through a model that was given a `Known`, and average the
    gradients over the ranks. Add those of the heads up. Of those of the encoder keep this rank's shard: the shards of
    all ranks together have every entry once. `weigh` then finds α.

    Attributes:
        totals: the step's losses and global counts.
        group_of_T: the index of each task's group; the tasks of a group share one backward and one α.
        held_T: α, where the step holds it: one backward is enough then. None: `weigh` finds it.
        ranks: the processes that share the batch.
        find: finds α.
    """

    totals: Totals
    group_of_T: Tensor
    held_T: Tensor | None
    ranks: Ranks
    find: Callable[[Tensor, Totals], Weighed]

    def backwards(self, sums: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return a scalar for each backward, and the weights of the tasks in the encoder's gradient meanwhile, (T,).

        Args:
            sums: this rank's loss sums, (T,), of the whole step or of one of its micro-batches. Or one such tensor for
                each group, from a forward of the samples that have labels of that group.
        """
        scaled = [self.ranks.size * means_of(sums_T, self.totals.counts_T) for sums_T in sums]
        if self.held_T is not None:
            return [(torch.stack(scaled).sum(), self.held_T)]
        labelled_T = (self.totals.counts_T > 0).double().cpu()
        found = []
        for group in range(int(self.group_of_T.max()) + 1):
            scaled_T = scaled[group if len(scaled) > 1 else 0]
            is_in_T = self.group_of_T == group
            weights_T = is_in_T * labelled_T
            found.append((scaled_T[is_in_T.to(scaled_T.device)].sum(), weights_T / weights_T.sum().clamp(min=1)))
        return found

    def weigh(self, shards_GS: Tensor) -> Tensor:
        """Return this rank's shard of the combined gradient: (S,). Collective; one T x T matrix travels.

        Args:
            shards_GS: this rank's shard of the encoder's gradient in each of `backwards`. Overwritten. S may differ
                between ranks.

        Raises:
            NonFiniteError: as in the backward of `Balancer.total`.
        """
        num_tasks = len(self.group_of_T)
        if self.held_T is not None:
            # There are no gradients of single tasks: each has one, and it is finite where the sum is.
            value = 1.0 if bool(shards_GS.isfinite().all()) else torch.nan
            _, dropped = self.find(shards_GS.new_full((num_tasks,), value, dtype=torch.float64), self.totals)
            return torch.zeros_like(shards_GS[0]) if dropped else shards_GS[0]
        group_of_T = self.group_of_T.to(shards_GS.device)
        alpha_T, dropped = self.find(gram(shards_GS)[group_of_T][:, group_of_T], self.totals)
        shards_GS[self.group_of_T[dropped]] = 0
        alpha_G = alpha_T.new_zeros(len(shards_GS)).index_add_(0, self.group_of_T, alpha_T)
        return alpha_G.to(shards_GS) @ shards_GS


def slopes(gram_TT: np.ndarray, alpha_T: np.ndarray, active_T: np.ndarray) -> Slopes:
    """Return how the step of `alpha_T` changes the losses of the active tasks.

    Args:
        gram_TT: the Gram matrix of the tasks' gradients with respect to the parameters.
        alpha_T: the weights of the step.
        active_T: bool, the tasks to include in `worst` and `num_ascending`.
    """
    falls_T = gram_TT @ alpha_T
    falls_A = falls_T[active_T]
    length = float(alpha_T @ falls_T)
    worst = float(falls_A.min() / length) if falls_A.size and length > 0 else 0.0
    return Slopes(falls_T, worst, int((falls_A < 0).sum()))
