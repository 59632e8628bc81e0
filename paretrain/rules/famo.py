"""FAMO: learns its weights from what a step has done to the losses.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from paretrain.rules.rule import Weights, inverse_losses, per_task, share, softmax

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Those of Adam, with which the authors' code learns the logits."""


class FAMO:
    """FAMO (Liu et al. 2023, arXiv 2306.03792, Algorithm 1, with the Adam of the authors' code).

    α ∝ softmax(w)_t / L_t: a weighted sum of the gradients of log L_t. After the optimizer's step the losses of the
    same batch are computed again, and the logits w follow the gradient of the softmax-weighted fall of log L: a task
    whose loss falls fast loses weight. That takes one more forward a step, which the trainer makes; in a loop of your
    own, call `Balancer.after_step`. Without these losses the logits stay at 0, and α ∝ 1/L.

    Tasks that are absent keep their logits, and so does a task whose loss is 0 or not finite after the step.

    Args:
        num_tasks: T.
        learning_rate: of the logits.
        decay: γ, the L2 penalty on the logits. The authors tune it.

    Raises:
        ValueError: the learning rate is not positive, or the decay is negative.
    """

    def __init__(self, num_tasks: int, learning_rate: float = 0.025, decay: float = 0.01) -> None:
        if not (learning_rate > 0 and decay >= 0):
            raise ValueError(f"expected learning_rate > 0 and decay >= 0, found {learning_rate} and {decay}")
        self._learning_rate, self._decay = learning_rate, decay
        self._logits_T, self._means_T, self._squares_T, self._updates_T = np.zeros((4, num_tasks))
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh, and remember the losses for `after_step`. A finished task has α = 0 (see `FINISHED`)."""
        inverse_A = inverse_losses(losses_A, tasks_A, "famo")
        self._before = losses_A, tasks_A
        return Weights(share(softmax(self._logits_T[tasks_A]) * inverse_A))

    def after_step(self, losses_T: np.ndarray) -> None:
        """Learn from the mean losses of the same batch after the step, (T,). Without a step before it, do nothing."""
        if self._before is None:
            return
        (losses_A, tasks_A), self._before = self._before, None
        after_A = losses_T[tasks_A]
        known_A = (losses_A > 0) & (after_A > 0) & np.isfinite(after_A)
        tasks_K = tasks_A[known_A]
        falls_K = np.log(losses_A[known_A]) - np.log(after_A[known_A])
        shares_K = softmax(self._logits_T[tasks_A])[known_A]
        slopes_K = shares_K * (falls_K - shares_K @ falls_K)
        self._follow(tasks_K, slopes_K + self._decay * self._logits_T[tasks_K])

    def _follow(self, tasks_K: np.ndarray, slopes_K: np.ndarray) -> None:
        """Make a step of Adam (Kingma & Ba 2015) on the logits of some tasks."""
        self._updates_T[tasks_K] += 1
        self._means_T[tasks_K] += (1 - BETA_1) * (slopes_K - self._means_T[tasks_K])
        self._squares_T[tasks_K] += (1 - BETA_2) * (slopes_K**2 - self._squares_T[tasks_K])
        mean_K = self._means_T[tasks_K] / (1 - BETA_1 ** self._updates_T[tasks_K])
        square_K = self._squares_T[tasks_K] / (1 - BETA_2 ** self._updates_T[tasks_K])
        self._logits_T[tasks_K] -= self._learning_rate * mean_K / (np.sqrt(square_K) + EPSILON)

    def state_dict(self) -> dict[str, Any]:
        """Return the logits and Adam's memory of each."""
        return {
            "logits": self._logits_T.tolist(),
            "means": self._means_T.tolist(),
            "squares": self._squares_T.tolist(),
            "updates": self._updates_T.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved logits."""
        self._logits_T, self._means_T, self._squares_T, self._updates_T = (
            per_task(state[name], len(self._logits_T)) for name in ("logits", "means", "squares", "updates")
        )
