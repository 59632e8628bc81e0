"""Rules that correct each gradient by the others, one after the other in a random order: PCGrad and GradVac.

Gradient i, once corrected, is Σ_t C_it g_t: all inner products that the corrections need follow from the rows C_i and
the Gram matrix. All rows are corrected at the same time, each in its own order.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from paretrain.rules.rule import Weights, in_units_of_the_mean, refuse_other_tasks


class PCGrad:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782, Algorithm 1): remove from each gradient what opposes another one.

    Each gradient meets the others in a random order. Where its inner product with one of them is negative, its
    component along that one is removed. The result is the mean of the corrected gradients, where the paper takes their
    sum, so that a learning rate carries over from other rules. The orders of a step depend only on the seed and on the
    number of steps before it.

    Args:
        num_tasks: T.
        seed: seed of the orders.
    """

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        self._num_tasks = num_tasks
        self._seed = seed
        self._step = 0

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Correct every gradient, and advance to the orders of the next step."""
        gram_AA = in_units_of_the_mean(gram_AA)
        rows_AA = np.eye(len(gram_AA))
        for i, j in meetings(self._num_tasks, tasks_A, self._seed, self._step):
            self._correct(rows_AA, gram_AA, i, j, tasks_A)
        self._step += 1
        return Weights(rows_AA.mean(axis=0))

    def _correct(
        self, rows_AA: np.ndarray, gram_AA: np.ndarray, i: np.ndarray, j: np.ndarray, tasks_A: np.ndarray
    ) -> None:
        """Correct the gradients `i` by the gradients `j`, in place."""
        inner = (rows_AA[i] * gram_AA[j]).sum(axis=1)
        squared = gram_AA[j, j]
        rows_AA[i, j] -= np.divide(inner, squared, out=np.zeros_like(inner), where=(inner < 0) & (squared > 0))

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of steps so far."""
        return {"seed": self._seed, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the saved seed, at the saved step."""
        self._seed, self._step = state["seed"], state["step"]


class GradVac(PCGrad):
    """Gradient Vaccine (Wang et al. 2021, arXiv 2010.05874, Algorithm 1): give each pair the cosine it usually has.

    As PCGrad, but gradient i is corrected where its cosine with g_j is below a target, and so far that it reaches the
    target. The target of a pair is the moving average of its cosines, and starts at 0. The mean of the corrected
    gradients, where the paper takes their sum. Absent tasks keep their targets.

    Args:
        num_tasks: T.
        seed: seed of the orders.
        decay: weight of a new cosine in the moving average, the paper's β.

    Raises:
        ValueError: a decay outside [0, 1].
    """

    def __init__(self, num_tasks: int, seed: int = 0, decay: float = 0.01) -> None:
        super().__init__(num_tasks, seed)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be between 0 and 1, found {decay}")
        self._decay = decay
        self._targets_TT = np.zeros((num_tasks, num_tasks))

    def _correct(
        self, rows_AA: np.ndarray, gram_AA: np.ndarray, i: np.ndarray, j: np.ndarray, tasks_A: np.ndarray
    ) -> None:
        """Correct the gradients `i` by the gradients `j`, in place, and move the targets."""
        length = np.sqrt(((rows_AA[i] @ gram_AA) * rows_AA[i]).sum(axis=1).clip(min=0))
        other = np.sqrt(gram_AA[j, j])
        inner = (rows_AA[i] * gram_AA[j]).sum(axis=1)
        both = length * other
        cosine = np.divide(inner, both, out=np.zeros_like(inner), where=both > 0).clip(-1, 1)
        target = self._targets_TT[tasks_A[i], tasks_A[j]]
        sine, target_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - target**2)
        # A target of 1 is that of parallel gradients, which no correction reaches.
        below = (cosine < target - 1e-9) & (target_sine > 1e-6) & (both > 0)
        added = length * (target * sine - cosine * target_sine)
        rows_AA[i, j] += np.divide(added, other * target_sine, out=np.zeros_like(added), where=below)
        self._targets_TT[tasks_A[i], tasks_A[j]] = (1 - self._decay) * target + self._decay * cosine

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the number of steps so far and the targets."""
        return {**super().state_dict(), "targets": self._targets_TT.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the saved seed and targets, at the saved step."""
        refuse_other_tasks(state["targets"], self._num_tasks)
        super().load_state_dict(state)
        self._targets_TT = np.array(state["targets"], dtype=np.float64)


def meetings(num_tasks: int, tasks_A: np.ndarray, seed: int, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield which gradients meet which others at the same time, as places among the active tasks.

    Every task has an order of all T tasks, drawn for this step; absent tasks and the task itself are passed over.
    """
    orders_TT = np.random.default_rng([seed, step]).permuted(np.tile(np.arange(num_tasks), (num_tasks, 1)), axis=1)
    place_T = np.full(num_tasks, -1)
    place_T[tasks_A] = np.arange(len(tasks_A))
    for j in place_T[orders_TT[tasks_A]].T:
        i = np.flatnonzero((j >= 0) & (j != np.arange(len(tasks_A))))
        if len(i):
            yield i, j[i]
