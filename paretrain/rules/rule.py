"""The protocol of a rule: one step's Gram matrix and losses -> the weights α of the active tasks.

A rule runs on rank 0 in float64, and its α is broadcast, so every rank holds the same bits. A rule sees only the active
tasks A, those with labels and a gradient in this step; `tasks_A` gives their indices among all T. A rule with memory
keeps it for all T tasks and leaves the entries of absent tasks unchanged.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

FINISHED = 1e-12
"""A task is finished when its loss is at most this fraction of the largest one. Rules that divide by the loss give it
α = 0 in that step, as every rule does for a task without a gradient."""


@dataclass(frozen=True)
class Weights:
    """The answer of a rule.

    Attributes:
        alpha_A: weights of the active tasks: any finite numbers. Those of most rules of this package are >= 0 and sum
            to 1, or to 0 when no task is left. Where a formula gives the step a length of its own, they are scaled so
            that their sum is 1 for equal losses with equal gradients.
        certified: whether each problem that the rule solved is within the solver's tolerance. True for a rule that
            solves none.
    """

    alpha_A: np.ndarray
    certified: bool = True


@runtime_checkable
class Weighting(Protocol):
    """A rule. Any object with these three methods is one."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh the active tasks.

        Args:
            gram_AA: float64 Gram matrix of the gradients of the mean task losses with respect to the representation,
                summed over all ranks; its diagonal is positive.
            losses_A: float64 mean losses over all labelled samples of all ranks.
            tasks_A: the indices of the active tasks among all T, ascending.

        Raises:
            ValueError: the rule cannot weigh these numbers. Every rank then raises BalanceError.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step needs from past ones: plain numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


@runtime_checkable
class LooksBack(Protocol):
    """A rule that also learns from the losses after the step."""

    def after_step(self, losses_T: np.ndarray) -> None:
        """Learn from the mean losses of the same batch after the optimizer's step, (T,); they may be NaN.

        A loop may leave this call out: where the step was skipped, say.
        """
        ...


class Stateless:
    """The two state methods of a rule without memory."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Expect an empty state."""
        assert not state, f"a stateless weighting was given {sorted(state)}"


def per_task(values: Sequence[float], num_tasks: int) -> np.ndarray:
    """Return a saved list of one number per task as a float64 array, (T,).

    Raises:
        ValueError: the list has another number of entries.
    """
    refuse_other_tasks(values, num_tasks)
    return np.array(values, dtype=np.float64)


def refuse_other_tasks(values: Sequence[Any], num_tasks: int) -> None:
    """Raise ValueError unless a saved list has one entry per task."""
    if len(values) != num_tasks:
        raise ValueError(f"the saved state has {len(values)} tasks, this rule has {num_tasks}")


def refuse_negative(losses_A: np.ndarray, tasks_A: np.ndarray, rule: str) -> None:
    """Raise ValueError, naming `rule` and the task, if a loss is negative."""
    if losses_A.min() < 0:
        worst = losses_A.argmin()
        raise ValueError(f"{rule} needs losses >= 0, and the task of index {tasks_A[worst]} has {losses_A[worst]:.4g}")


def unfinished(losses_A: np.ndarray, tasks_A: np.ndarray, rule: str) -> np.ndarray:
    """Return which tasks have a loss that can be divided by (see `FINISHED`): bool, (A,).

    Raises:
        ValueError: a loss is negative.
    """
    refuse_negative(losses_A, tasks_A, rule)
    unfinished_A: np.ndarray = losses_A > FINISHED * losses_A.max()
    return unfinished_A


def inverse_losses(losses_A: np.ndarray, tasks_A: np.ndarray, rule: str) -> np.ndarray:
    """Return 1/L, and 0 for finished tasks, (A,).

    Raises:
        ValueError: a loss is negative.
    """
    inverse_A = np.zeros(len(losses_A))
    np.divide(1, losses_A, out=inverse_A, where=unfinished(losses_A, tasks_A, rule))
    return inverse_A


def refuse_to_hide_losses(rule: Weighting, key: str) -> None:
    """Raise ValueError, naming what stands between, if a rule needs the losses of each task after the step."""
    if isinstance(rule, LooksBack):
        raise ValueError(f"{type(rule).__name__} learns from each task's loss after the step: leave out {key}")


def in_units_of_the_mean(gram_AA: np.ndarray) -> np.ndarray:
    """Return the Gram matrix with the root mean squared gradient norm as the unit of length.

    The gradient of a batch's mean loss with respect to the representation shrinks as the batch grows. Without this
    unit, a rule that compares gradient norms with a constant would behave differently at every batch size.
    """
    scaled_AA: np.ndarray = gram_AA / (gram_AA.diagonal().mean() or 1.0)
    return scaled_AA


def share(weights_A: np.ndarray) -> np.ndarray:
    """Scale weights >= 0 to sum to 1; return zeros if none is positive."""
    shares_A: np.ndarray = weights_A / (weights_A.sum() or 1.0)
    return shares_A


def softmax(scores_A: np.ndarray) -> np.ndarray:
    """Return exp(scores), scaled to sum to 1."""
    return share(np.exp(scores_A - scores_A.max()))
