"""Rules that use the gradients: the min-norm point, and two that follow the gradient norms over time.

Shapes: T tasks, A active tasks (A <= T), H steps of history.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paretrain.rules.rule import (
    Weights,
    in_units_of_the_mean,
    per_task,
    refuse_negative,
    refuse_other_tasks,
    share,
    unfinished,
)

if TYPE_CHECKING:
    from paretrain.minnorm.descent import Products


class MinNormWeighting:
    """The exact min-norm point of the convex hull of the task gradients (Sener & Koltun 2018, equation 3).

    Each solve starts from the support of the last one, which changes little from step to step.
    """

    def __init__(self) -> None:
        self._support: list[int] = []

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Solve; `certified` says whether the duality gap is within the solver's tolerance."""
        from paretrain import minnorm  # scipy.linalg takes 0.3 s to import, and only rank 0 needs it

        last = set(self._support)
        support = [place for place, task in enumerate(tasks_A.tolist()) if task in last]
        solution = minnorm.solve(gram_AA, support=np.array(support) if support else None)
        self._support = tasks_A[solution.support].tolist()
        return Weights(solution.alpha_T, solution.certified)

    def by_products(self, gram: "Products", tasks_A: np.ndarray) -> Weights:
        """Solve for thousands of tasks, from products of the Gram matrix with vectors; see `minnorm.descent`."""
        from paretrain import minnorm

        solution = minnorm.solve_by_products(gram)
        self._support = tasks_A[solution.support].tolist()
        return Weights(solution.alpha_T, solution.certified)

    def state_dict(self) -> dict[str, Any]:
        """Return the last support."""
        return {"support": self._support}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next solve from the saved support."""
        self._support = list(state["support"])


class GradNorm:
    """GradNorm (Chen et al. 2018, arXiv 1711.02257): balance the gradient norms and the rates of training.

    Let G_t = w_t |g_t|, G its mean over the tasks, and r_t the ratio of the loss to its first value, divided by the
    mean of that ratio over the tasks. Each step makes one step of gradient descent on Σ_t |G_t - G r_t^asymmetry|
    (equation 2) over the weights w, with the target held constant, and rescales w to its former sum. α is the w before
    that step, scaled to sum 1. The norms are those of the gradients with respect to the representation, in units of
    their root mean square; the paper uses the last shared layer. A weight that would fall below `SMALLEST` stops there.

    Args:
        num_tasks: T.
        asymmetry: the paper's α, the strength of the pull towards a common rate; 0.5 to 1.5 works well there, up to 3.
        learning_rate: learning rate of the weights.

    Raises:
        ValueError: a learning rate that is not positive.
    """

    SMALLEST = 1e-3
    """The smallest weight; their mean is 1."""

    def __init__(self, num_tasks: int, asymmetry: float = 1.5, learning_rate: float = 0.025) -> None:
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, found {learning_rate}")
        self._asymmetry = asymmetry
        self._learning_rate = learning_rate
        self._weights_T = np.ones(num_tasks)
        self._first_losses_T = np.zeros(num_tasks)

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Return the learned weights, then update those of the active tasks."""
        weights_A = self._weights_T[tasks_A]
        norms_A = np.sqrt(in_units_of_the_mean(gram_AA).diagonal())
        weighted_A = weights_A * norms_A
        targets_A = weighted_A.mean() * self._relative_rates(losses_A, tasks_A) ** self._asymmetry
        moved_A = weights_A - self._learning_rate * np.sign(weighted_A - targets_A) * norms_A
        self._weights_T[tasks_A] = weights_A.sum() * share(moved_A.clip(min=self.SMALLEST))
        return Weights(share(weights_A))

    def _relative_rates(self, losses_A: np.ndarray, tasks_A: np.ndarray) -> np.ndarray:
        first_A = self._first_losses_T[tasks_A]
        fresh_A = unfinished(losses_A, tasks_A, "gradnorm") & (first_A == 0)
        first_A = np.where(fresh_A, losses_A, first_A)
        self._first_losses_T[tasks_A] = first_A
        ratios_A = np.divide(losses_A, first_A, out=np.ones_like(losses_A), where=first_A > 0)
        rates_A: np.ndarray = ratios_A / (ratios_A.mean() or 1.0)
        return rates_A

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and each task's first loss (0 for a task not seen yet)."""
        return {"weights": self._weights_T.tolist(), "first_losses": self._first_losses_T.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved weights."""
        self._weights_T, self._first_losses_T = (
            per_task(state[name], len(self._weights_T)) for name in ("weights", "first_losses")
        )


class Tension:
    """Task tensioning (CDTT; arXiv 2204.06698): the centre direction, pulled towards tasks that stopped improving.

    The centre is the min-norm point of the UNIT gradients, expressed in weights of the original gradients and scaled to
    sum 1; where that leaves the weights open, as parallel gradients do, it takes the most even ones. Each task then
    pulls by its tension τ_t along the unit vector from the centre to g_t, where
    τ_t = A σ(e (rate_t - 1)) + 1 - A and rate_t = (sum of its last 10 gradient norms) / (sum of the 10 up to the step
    before) + log10 L_t. Finally, in task order, each gradient that the result opposes is projected out; the authors'
    code also rescales there. A task with fewer than 11 steps of history, or at the centre itself, does not pull.

    Lengths are in units of the root mean squared gradient norm. The weights may be negative, and after projections
    their sum may differ from 1.

    Args:
        num_tasks: T.
        amount: A above, in [0, 1]: the part of the tension that depends on the task's rate; the authors use 0.3.

    Raises:
        ValueError: an amount outside [0, 1].
    """

    WINDOW = 10

    def __init__(self, num_tasks: int, amount: float = 0.3) -> None:
        if not 0 <= amount <= 1:
            raise ValueError(f"amount must be between 0 and 1, found {amount}")
        self._amount = amount
        self._norms_TH: list[list[float]] = [[] for _ in range(num_tasks)]

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Find the centre, pull it and project."""
        norms_A = np.sqrt(gram_AA.diagonal())
        moving = np.flatnonzero(norms_A)
        if len(moving) < len(tasks_A):  # A task without a gradient takes no part.
            alpha_A, certified = np.zeros(len(tasks_A)), True
            if moving.size:
                weights = self(gram_AA[np.ix_(moving, moving)], losses_A[moving], tasks_A[moving])
                alpha_A[moving], certified = weights.alpha_A, weights.certified
            return Weights(alpha_A, certified)
        for task, norm in zip(tasks_A, norms_A.tolist(), strict=True):
            self._norms_TH[task] = [*self._norms_TH[task], norm][-self.WINDOW - 1 :]
        alpha_A, certified = _centre(gram_AA, norms_A)
        gram_AA = in_units_of_the_mean(gram_AA)
        alpha_A = self._pulled(alpha_A, gram_AA, self._tensions(losses_A, tasks_A))
        for task, row_A in enumerate(gram_AA):
            alpha_A[task] -= min(row_A @ alpha_A, 0) / row_A[task]
        return Weights(alpha_A, certified)

    def _tensions(self, losses_A: np.ndarray, tasks_A: np.ndarray) -> np.ndarray:
        refuse_negative(losses_A, tasks_A, "tension")
        with np.errstate(divide="ignore"):  # a loss of 0 has the logarithm -inf and the tension 1 - A
            logarithms_A = np.log10(losses_A)
        tensions_A = np.zeros(len(tasks_A))
        for index, task in enumerate(tasks_A):
            norms_H = self._norms_TH[task]
            if len(norms_H) > self.WINDOW:
                rate = sum(norms_H[1:]) / sum(norms_H[:-1]) + logarithms_A[index]
                # The logistic function of e (rate - 1), without importing scipy.special, which takes 0.25 s.
                logistic = 0.5 * (1 + np.tanh(0.5 * np.e * (rate - 1)))
                tensions_A[index] = self._amount * logistic + 1 - self._amount
        return tensions_A

    @staticmethod
    def _pulled(centre_A: np.ndarray, gram_AA: np.ndarray, tensions_A: np.ndarray) -> np.ndarray:
        slopes_A = gram_AA @ centre_A
        squared_A = gram_AA.diagonal() - 2 * slopes_A + centre_A @ slopes_A
        # Below this bound the distance from the centre is rounding error and has no direction.
        apart_A = squared_A > 1e-12 * gram_AA.diagonal()
        pulls_A = np.divide(tensions_A, np.sqrt(squared_A.clip(min=0)), out=np.zeros_like(squared_A), where=apart_A)
        pulled_A: np.ndarray = centre_A + pulls_A - pulls_A.sum() * centre_A
        return pulled_A

    def state_dict(self) -> dict[str, Any]:
        """Return the last gradient norms of each task."""
        return {"norms": [list(norms_H) for norms_H in self._norms_TH]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the saved history."""
        refuse_other_tasks(state["norms"], len(self._norms_TH))
        self._norms_TH = [list(norms_H) for norms_H in state["norms"]]


def _centre(gram_AA: np.ndarray, norms_A: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the centre's weights of the gradients, scaled to sum 1, and whether it is certified."""
    from paretrain import minnorm  # as in MinNormWeighting
    from paretrain.minnorm.symmetric import most_even

    units_AA = gram_AA / np.outer(norms_A, norms_A)
    centre = minnorm.solve(units_AA)
    return share(most_even(units_AA, centre.alpha_T) / norms_A), centre.certified
