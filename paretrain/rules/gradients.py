"""Rules that look at the gradients: the min-norm point, and two that watch the gradients' norms over time.

Shapes: T tasks, A active tasks (A <= T), H steps of history.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from paretrain import minnorm
from paretrain.rules.rule import (
    Weights,
    in_units_of_the_mean,
    per_task,
    refuse_negative,
    refuse_other_tasks,
    share,
    unfinished,
)


class MinNormWeighting:
    """The exact min-norm point of the convex hull of the task gradients (Sener & Koltun 2018, equation 3).

    The support of the last solution starts the next solve: it changes little from step to step.
    """

    def __init__(self) -> None:
        self._support: list[int] = []

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Solve; `certified` is the solver's own verdict on its duality gap."""
        support = np.flatnonzero(np.isin(tasks_A, self._support))
        solution = minnorm.solve(gram_AA, support=support if support.size else None)
        self._support = tasks_A[solution.support].tolist()
        return Weights(solution.alpha_T, solution.certified)

    def state_dict(self) -> dict[str, Any]:
        """Return the last support."""
        return {"support": self._support}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next solve from the saved support."""
        self._support = list(state["support"])


class GradNorm:
    """GradNorm (Chen et al. 2018, arXiv 1711.02257): weighted gradient norms pulled towards a common rate of training.

    With G_t = w_t |g_t|, its mean G over the tasks, and r_t the loss relative to its first value, relative again to the
    tasks' mean, each step moves the weights once down the gradient of Σ_t |G_t - G r_t^asymmetry|, where the target is
    held constant, and rescales them; α is the share of each weight before that move. The norms are the square roots of
    the Gram's diagonal, in units of their root mean square, hence of the gradients with respect to the representation;
    the paper takes those with respect to the last shared layer. Gradient descent could take a weight below 0, so it
    stops at `SMALLEST`.

    Args:
        num_tasks: T.
        asymmetry: the paper's α, the strength of the pull; its range of good values is 0.5 to 1.5, up to 3.
        learning_rate: of the weights.

    Raises:
        ValueError: a learning rate that is not positive.
    """

    SMALLEST = 1e-3
    """Least weight, where the mean is 1."""

    def __init__(self, num_tasks: int, asymmetry: float = 1.5, learning_rate: float = 0.025) -> None:
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, found {learning_rate}")
        self._asymmetry = asymmetry
        self._learning_rate = learning_rate
        self._weights_T = np.ones(num_tasks)
        self._first_losses_T = np.zeros(num_tasks)

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh by the learned weights; then learn them, of the active tasks."""
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
        return ratios_A / (ratios_A.mean() or 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, and each task's first loss (0 for one not seen yet)."""
        return {"weights": self._weights_T.tolist(), "first_losses": self._first_losses_T.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the saved weights."""
        self._weights_T, self._first_losses_T = (
            per_task(state[name], len(self._weights_T)) for name in ("weights", "first_losses")
        )


class Tension:
    """Task tensioning (CDTT; arXiv 2204.06698): the centre direction, pulled towards tasks that stopped improving.

    The centre c0 is the min-norm point of the UNIT gradients, un-normalised to sum 1. A task's tension
    τ_t = A σ(e (rate_t - 1)) + 1 - A grows with rate_t = (its last 10 gradient norms, summed) / (the 10 up to the step
    before) + log10 L_t, and pulls by τ_t along the unit vector from the centre to g_t. At last each gradient that the
    result opposes is projected out, in task order; the authors' code also rescales there. A task without 11 steps of
    history, or at the centre itself, does not pull.

    Lengths are in units of the root mean squared gradient norm. The weights may be negative, and projections change
    their sum from 1.

    Args:
        num_tasks: T.
        amount: A above, in [0, 1]: how much of the tension depends on the task's rate; 0.3 in the authors' example.

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
        """Centre, pull, project."""
        norms_A = np.sqrt(gram_AA.diagonal())
        for task, norm in zip(tasks_A, norms_A.tolist(), strict=True):
            self._norms_TH[task] = [*self._norms_TH[task], norm][-self.WINDOW - 1 :]
        centre = minnorm.solve(gram_AA / np.outer(norms_A, norms_A))
        alpha_A = share(centre.alpha_T / norms_A)
        gram_AA = in_units_of_the_mean(gram_AA)
        alpha_A = self._pulled(alpha_A, gram_AA, self._tensions(losses_A, tasks_A))
        for task, row_A in enumerate(gram_AA):
            alpha_A[task] -= min(row_A @ alpha_A, 0) / row_A[task]
        return Weights(alpha_A, centre.certified)

    def _tensions(self, losses_A: np.ndarray, tasks_A: np.ndarray) -> np.ndarray:
        refuse_negative(losses_A, tasks_A, "tension")
        with np.errstate(divide="ignore"):  # A loss of 0 has the logarithm -inf, and the tension 1 - A.
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
        # Below this, the distance from the centre is rounding, and has no direction.
        apart_A = squared_A > 1e-12 * gram_AA.diagonal()
        pulls_A = np.divide(tensions_A, np.sqrt(squared_A.clip(min=0)), out=np.zeros_like(squared_A), where=apart_A)
        return centre_A + pulls_A - pulls_A.sum() * centre_A

    def state_dict(self) -> dict[str, Any]:
        """Return the last gradient norms of each task."""
        return {"norms": [list(norms_H) for norms_H in self._norms_TH]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the saved history."""
        refuse_other_tasks(state["norms"], len(self._norms_TH))
        self._norms_TH = [list(norms_H) for norms_H in state["norms"]]
