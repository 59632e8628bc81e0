"""GO4Align: tasks whose risks are alike share a weight.

Shapes: T tasks, A active tasks (A <= T), C clusters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from paretrain.rules.rule import Weights, inverse_losses, per_task, softmax


class GO4Align:
    """GO4Align (Shen et al. 2024, arXiv 2404.06486), with k-means on the weights, as in the authors' class GO4ALIGN.

    Each task has a score p, which starts equal and is multiplied by exp(-rate L) in each step; p is scaled to sum 1.
    The indicator of a task is p_t Σ_s L_s / L_t. The indicators are clustered, and each task gets the mean indicator
    of its cluster. On a line k-means is solved exactly here, so nothing depends on a random start. The sum of the
    losses is divided by their number, so that equal losses have weights of sum 1. A finished task (its loss is 0, see
    `FINISHED`) has α = 0.

    Args:
        num_tasks: T.
        clusters: C; with as many as tasks, or more, each task is its own. The authors tune it.
        rate: how fast the scores follow the losses.

    Raises:
        ValueError: fewer than one cluster, or a negative rate.
    """

    def __init__(self, num_tasks: int, clusters: int = 2, rate: float = 1e-4) -> None:
        if not (clusters >= 1 and rate >= 0):
            raise ValueError(f"expected clusters >= 1 and rate >= 0, found {clusters} and {rate}")
        self._clusters, self._rate = clusters, rate
        self._log_scores_T = np.zeros(num_tasks)

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Update the scores by this step's losses, then weigh by the clusters of the indicators."""
        inverse_A = inverse_losses(losses_A, tasks_A, "go4align")
        self._log_scores_T[tasks_A] -= self._rate * losses_A
        indicators_A = softmax(self._log_scores_T[tasks_A]) * losses_A.mean() * inverse_A
        left_A = inverse_A > 0
        alpha_A = np.zeros(len(tasks_A))
        alpha_A[left_A] = cluster_means(indicators_A[left_A], self._clusters)
        return Weights(alpha_A)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores' logarithms."""
        return {"log_scores": self._log_scores_T.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved scores."""
        self._log_scores_T = per_task(state["log_scores"], len(self._log_scores_T))


def cluster_means(values_A: np.ndarray, clusters: int) -> np.ndarray:
    """Replace each value by the mean of its cluster, (A,): the best k-means on a line, by dynamic programming.

    The clusters of the best solution are ranges of the sorted values (Fisher 1958).
    """
    order_A = np.argsort(values_A, kind="stable")
    num, sums, squares = (
        len(values_A),
        *(np.concatenate([[0.0], np.cumsum(values_A[order_A] ** power)]) for power in (1, 2)),
    )

    def spread(starts: np.ndarray, end: int) -> np.ndarray:
        """Return the sum of squared distances to their mean of the values from each start to an end."""
        found: np.ndarray = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        return found

    cost = np.array([0.0, *(spread(np.array([0]), end)[0] for end in range(1, num + 1))])
    starts_of: list[np.ndarray] = [np.zeros(num + 1, dtype=int)]
    for used in range(1, min(clusters, num)):
        starts_of.append(np.zeros(num + 1, dtype=int))
        longer = cost.copy()
        for end in range(used + 1, num + 1):
            starts = np.arange(used, end)
            costs = cost[starts] + spread(starts, end)
            longer[end], starts_of[used][end] = costs.min(), starts[costs.argmin()]
        cost = longer
    means_A, end = np.empty(num), num
    for starts_at in reversed(starts_of):
        start = int(starts_at[end])
        means_A[order_A[start:end]] = values_A[order_A[start:end]].mean()
        end = start
    return means_A
