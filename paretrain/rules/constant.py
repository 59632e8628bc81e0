"""Rules that use neither gradients nor losses.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paretrain.rules.rule import Stateless, Weights, share, softmax

if TYPE_CHECKING:
    from paretrain.minnorm.descent import Products


class Uniform(Stateless):
    """α = 1/A: the mean of the losses."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Give every active task the same weight."""
        return _equal(len(tasks_A))

    def by_products(self, gram: "Products", tasks_A: np.ndarray) -> Weights:
        """Do the same without the Gram matrix."""
        return _equal(len(tasks_A))


class Fixed(Stateless):
    """Constant weights, rescaled in each step to sum to 1 over its active tasks.

    Args:
        weights_T: a weight >= 0 for each task, in task order; they sum to 1. Weight 0 trains the task's head only.

    Raises:
        ValueError: a weight is negative or not finite, or they do not sum to 1.
    """

    def __init__(self, weights_T: Sequence[float]) -> None:
        self._weights_T = np.asarray(weights_T, dtype=np.float64)
        if not (np.isfinite(self._weights_T).all() and (self._weights_T >= 0).all()):
            raise ValueError(f"fixed weights must be finite and >= 0, found {list(weights_T)}")
        if abs(self._weights_T.sum() - 1) > 1e-6:
            raise ValueError(f"fixed weights must sum to 1, found {list(weights_T)} with sum {self._weights_T.sum():g}")

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Rescale the weights of the active tasks; return zeros if all of them have weight 0."""
        return Weights(share(self._weights_T[tasks_A]))


class Random:
    """Random loss weighting (RLW; Lin et al. 2021, arXiv 2111.10603): α = softmax of T standard normal numbers.

    The numbers of a step depend only on the seed and on the number of steps before it.

    Args:
        num_tasks: T.
        seed: seed of the random numbers.
    """

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        self._num_tasks = num_tasks
        self._seed = seed
        self._step = 0

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Draw a number for every task, so that an absent task does not change those of the others."""
        scores_T = np.random.default_rng([self._seed, self._step]).standard_normal(self._num_tasks)
        self._step += 1
        return Weights(softmax(scores_T[tasks_A]))

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of steps so far."""
        return {"seed": self._seed, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the saved seed, at the saved step."""
        self._seed, self._step = state["seed"], state["step"]


def _equal(num_active: int) -> Weights:
    return Weights(np.full(num_active, 1 / num_active))
