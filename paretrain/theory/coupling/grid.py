"""The penalties to choose from."""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics import coupling


@dataclass(frozen=True)
class PenaltyGrid:
    """Hold L pairs of a common and an own penalty; a pair with common = inf keeps the tasks apart."""

    common_L: Array
    own_L: Array

    def matrices(self, num_tasks: int) -> list[Array]:
        """Return Q (T x T) of each pair."""
        pairs = zip(self.common_L, self.own_L, strict=True)
        return [
            own * np.eye(num_tasks) if np.isinf(common) else coupling(num_tasks, common, own) for common, own in pairs
        ]


def penalty_grid(smallest: float = 1e-2, largest: float = 1e4, per_decade: int = 2) -> PenaltyGrid:
    """Return all pairs of a logarithmic grid, and the same own penalties without coupling."""
    count = round(per_decade * np.log10(largest / smallest)) + 1
    steps = np.geomspace(smallest, largest, count)
    common, own = np.meshgrid(np.append(steps, np.inf), steps)
    return PenaltyGrid(common.ravel(), own.ravel())
