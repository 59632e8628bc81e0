"""The numbers of a step that rank 0 receives, the verdict that it sends, and the form in which the verdict travels.

Shapes: T tasks, W ranks.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from paretrain.products import SummedProducts

HEAD = 5
"""Numbers of a packed verdict before those of the tasks."""


class Batch(NamedTuple):
    """The numbers of the whole batch, summed over the ranks."""

    gram_TT: np.ndarray
    """Gram matrix of the gradients of the mean losses, float64; its diagonal, (T,), in a step that holds α."""
    losses_T: np.ndarray
    """Mean losses."""
    counts_T: np.ndarray
    """Labelled samples."""
    broken_W: np.ndarray
    """Non-zero where a rank's own part is not finite: a sum over ranks shows that one has a NaN, but not which."""
    products: SummedProducts | None = None
    """Multiplies with the Gram matrix where that is not formed; `gram_TT` is then its diagonal."""


class Outcome(IntEnum):
    """What happens to a step."""

    WEIGHED = 0
    SKIPPED = 1
    OVERFLOWED = 2
    STOPPED = 3
    FAILED = 4


@dataclass(frozen=True)
class Verdict:
    """What rank 0 decides about a step; see `Balance` for the meaning of the numbers.

    Attributes:
        outcome: WEIGHED: α is found. SKIPPED, OVERFLOWED, STOPPED: something is not finite. FAILED: the rule raised.
        broken_losses_T: bool, where the mean loss is not finite.
        broken_gradients_T: bool, where the gradient with respect to z is not finite.
        broken_W: bool, the ranks whose own part is not finite.
        stale: how stale weights had become when they were last found anew; NaN: never.
    """

    outcome: Outcome
    alpha_T: np.ndarray
    min_norm: float
    gap: float
    certified: bool
    active_T: np.ndarray
    losses_T: np.ndarray
    broken_losses_T: np.ndarray
    broken_gradients_T: np.ndarray
    broken_W: np.ndarray
    stale: float = np.nan

    def pack(self) -> np.ndarray:
        """Return the verdict as one float64 vector of `verdict_size` numbers."""
        of_tasks = [self.alpha_T, self.losses_T, self.active_T, self.broken_losses_T, self.broken_gradients_T]
        head = [self.outcome, self.min_norm, self.gap, self.certified, self.stale]
        return np.concatenate([head, *of_tasks, self.broken_W]).astype(np.float64)

    @staticmethod
    def unpack(numbers: np.ndarray, num_tasks: int) -> "Verdict":
        """Return the verdict that `pack` was given."""
        outcome, min_norm, gap, certified, stale = numbers[:HEAD]
        of_tasks = numbers[HEAD : HEAD + 5 * num_tasks].reshape(5, num_tasks)
        return Verdict(
            outcome=Outcome(int(outcome)),
            alpha_T=of_tasks[0],
            min_norm=float(min_norm),
            gap=float(gap),
            certified=bool(certified),
            active_T=of_tasks[2] != 0,
            losses_T=of_tasks[1],
            broken_losses_T=of_tasks[3] != 0,
            broken_gradients_T=of_tasks[4] != 0,
            broken_W=numbers[HEAD + 5 * num_tasks :] != 0,
            stale=float(stale),
        )


def verdict_size(num_tasks: int, num_ranks: int) -> int:
    """Return how many numbers a packed verdict has."""
    return HEAD + 5 * num_tasks + num_ranks


def failed(num_tasks: int, num_ranks: int) -> Verdict:
    """Return the verdict of a step in which the rule raised on rank 0."""
    nothing_T = np.zeros(num_tasks)
    return Verdict(
        outcome=Outcome.FAILED,
        alpha_T=nothing_T,
        min_norm=0.0,
        gap=0.0,
        certified=False,
        active_T=nothing_T,
        losses_T=nothing_T,
        broken_losses_T=nothing_T,
        broken_gradients_T=nothing_T,
        broken_W=np.zeros(num_ranks),
    )
