"""Lazy weights: α is found every K steps and held in between; each new Gram matrix says how stale α had become.

Nash-MTL (Navon et al. 2022, arXiv 2202.01017) renews its weights every few steps, too. Every rank counts alike, since
all numbers here come from the verdict and from global counts.

Shapes: T tasks, A active tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from paretrain.products import Among
from paretrain.rules.rule import per_task


@dataclass(frozen=True)
class Held:
    """The weights that are held, and what was found with them; see `Balance`.

    Attributes:
        weighed_T: bool, the tasks that had labels when α was found. α says nothing of the others.
        stale: how stale the weights before had become; None if there were none.
    """

    alpha_T: np.ndarray
    weighed_T: np.ndarray
    min_norm: float
    gap: float
    certified: bool
    stale: float | None


class Renewal:
    """Decides in which steps α is found, and keeps it for the others.

    α is found if it is `interval` steps old, or if a task has labels that had none when α was last found. The interval
    is `every_steps`. With `max_gap`, it is halved whenever α has become staler than `max_gap`, and doubled, up to
    `every_steps`, whenever it has not. A step without any label does not count.

    Args:
        every_steps: K; 1: α is found in every step.
        max_gap: largest staleness (see `staleness`) that leaves the interval as it is; None: any.

    Attributes:
        held: None before the first α, and for K = 1.
        age: steps since α was found, that step included.
        interval: see above.

    Raises:
        ValueError: every_steps is below 1, or max_gap is negative.
    """

    def __init__(self, every_steps: int = 1, max_gap: float | None = None) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, found {every_steps}")
        if max_gap is not None and not max_gap >= 0:
            raise ValueError(f"max_gap must be at least 0, found {max_gap}")
        self._every_steps, self._max_gap = every_steps, max_gap
        self.held: Held | None = None
        self.age, self.interval = 0, every_steps

    def holds(self, counts_T: Tensor) -> bool:
        """Return whether the coming step holds α.

        Args:
            counts_T: labelled samples of each task over all ranks.
        """
        if self.held is None or self.age >= self.interval:
            return False
        return not (self.held.weighed_T < (counts_T.cpu().numpy() > 0)).any()

    def held_step(self) -> None:
        """Count a step that had labels and held α."""
        self.age += 1

    def renew(self, held: Held) -> None:
        """Hold the weights that this step has found from now on."""
        if self._every_steps == 1:
            return
        if self._max_gap is not None and held.stale is not None:
            changed = self.interval // 2 if held.stale > self._max_gap else self.interval * 2
            self.interval = min(max(changed, 1), self._every_steps)
        self.held, self.age = held, 1

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step needs, as plain numbers; empty while nothing is held."""
        if self.held is None:
            return {}
        return {
            "alpha": self.held.alpha_T.tolist(),
            "weighed": self.held.weighed_T.tolist(),
            "min_norm": self.held.min_norm,
            "gap": self.held.gap,
            "certified": self.held.certified,
            "stale": self.held.stale,
            "age": self.age,
            "interval": self.interval,
        }

    def load_state_dict(self, state: Mapping[str, Any], num_tasks: int) -> None:
        """Go on from a saved state, under the present `every_steps`.

        Raises:
            ValueError: the state is that of another number of tasks.
        """
        self.held, self.age, self.interval = None, 0, self._every_steps
        if not state or self._every_steps == 1:
            return
        alpha_T, weighed_T = (per_task(state[name], num_tasks) for name in ("alpha", "weighed"))
        numbers = (state[name] for name in ("min_norm", "gap", "certified", "stale"))
        self.held = Held(alpha_T, weighed_T != 0, *numbers)
        self.age, self.interval = state["age"], min(state["interval"], self._every_steps)


def staleness(gram_AA: np.ndarray | Among, alpha_A: np.ndarray) -> float:
    """Return the duality gap of weights on a Gram matrix, as a fraction of the squared norm of their combination.

    It is (αᵀMα - min_t (Mα)_t) / αᵀMα for α scaled to sum 1: 0 if α is the min-norm point; above 1 if some loss rises.
    The combined gradient is at most sqrt(staleness) times its own length away from the shortest one. 0 for weights
    whose sum is not positive, or whose combination vanishes.
    """
    total = alpha_A.sum()
    if not total > 0:
        return 0.0
    slopes_A = gram_AA @ (alpha_A / total)
    length = float(alpha_A @ slopes_A) / total
    return float(1 - slopes_A.min() / length) if length > 0 else 0.0
