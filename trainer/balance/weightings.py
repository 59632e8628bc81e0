"""Rules that turn one step's reduced Gram into task weights α.

A rule sees only the active tasks A (those with labels and a gradient in this step), on rank 0, in float64; its α is
broadcast, so every rank holds the same bits. A rule that remembers something between steps puts it into `state_dict`.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trainer.balance import minnorm


@dataclass(frozen=True)
class Weights:
    """What a rule answers: the weights of the active tasks, and whether they are what the rule promises."""

    alpha_A: np.ndarray
    certified: bool = True


class Weighting(Protocol):
    """A rule: the reduced Gram of the active tasks -> their weights."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh the active tasks.

        Args:
            gram_AA: float64 Gram matrix of the gradients of the mean task losses with respect to the representation,
                summed over all ranks.
            losses_A: float64 mean losses over all labelled samples of all ranks.
            tasks_A: the indices, among all T tasks, of the rows above.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs from the past ones; plain numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


class Stateless:
    """The two state methods of a rule that remembers nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Expect nothing."""
        assert not state, f"a stateless weighting was given {sorted(state)}"


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


class Uniform(Stateless):
    """α = 1/A: the mean of the losses."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh all active tasks alike."""
        return Weights(np.full(len(tasks_A), 1 / len(tasks_A)))


class Fixed(Stateless):
    """Constant weights, shared out anew among the active tasks of a step.

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
        """Give each active task its share; none has any where all active tasks weigh 0."""
        weights_A = self._weights_T[tasks_A]
        return Weights(weights_A / (weights_A.sum() or 1.0))
