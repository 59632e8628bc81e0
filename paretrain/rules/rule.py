"""What a rule is: one step's reduced Gram and losses -> the weights α of the active tasks.

A rule runs on rank 0, in float64, and its α is broadcast: every rank holds the same bits. It sees only the active
tasks A, those with labels and a gradient in this step; `tasks_A` says which of all T they are. What a rule remembers,
it keeps for all T tasks; what it knows of an absent task stays as it is.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

FINISHED = 1e-12
"""A task is finished where its loss is at most this fraction of the largest one: rules that divide by the loss leave it
out of the step, with α = 0, as a task without a gradient is left out of every rule."""


@dataclass(frozen=True)
class Weights:
    """What a rule answers.

    Attributes:
        alpha_A: weights of the active tasks. The rules of this package, `Tension` apart, give weights that are >= 0 and
            sum to 1, or to 0 where no task is left; those of others give any finite numbers.
        certified: whether each min-norm problem that the rule solved is within the solver's tolerance. True for a rule
            that solves none: it has nothing to certify.
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
            tasks_A: the indices, among all T tasks, of the rows above, ascending.

        Raises:
            ValueError: the rule has no answer to these numbers. It stops the step on every rank.
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


def per_task(values: Sequence[float], num_tasks: int) -> np.ndarray:
    """One saved number a task -> (T,) float64.

    Raises:
        ValueError: the state is of another number of tasks.
    """
    refuse_other_tasks(values, num_tasks)
    return np.array(values, dtype=np.float64)


def refuse_other_tasks(values: Sequence[Any], num_tasks: int) -> None:
    """Raise a ValueError where a saved list does not hold one entry a task."""
    if len(values) != num_tasks:
        raise ValueError(f"the saved state is of {len(values)} tasks, this rule is of {num_tasks}")


def refuse_negative(losses_A: np.ndarray, tasks_A: np.ndarray, rule: str) -> None:
    """Raise a ValueError that names `rule` and the task, where a loss is negative."""
    if losses_A.min() < 0:
        worst = losses_A.argmin()
        raise ValueError(f"{rule} needs losses >= 0, and the task of index {tasks_A[worst]} has {losses_A[worst]:.4g}")


def unfinished(losses_A: np.ndarray, tasks_A: np.ndarray, rule: str) -> np.ndarray:
    """Which tasks have a loss to divide by (see `FINISHED`): bool, (A,).

    Raises:
        ValueError: a loss is negative.
    """
    refuse_negative(losses_A, tasks_A, rule)
    return losses_A > FINISHED * losses_A.max()


def in_units_of_the_mean(gram_AA: np.ndarray) -> np.ndarray:
    """The Gram with the root mean squared gradient norm as the unit of length.

    The gradients of a batch's mean loss with respect to the representation shrink with the batch. A rule that compares
    their length with a constant of its own would else mean another thing at every batch size.
    """
    return gram_AA / gram_AA.diagonal().mean()


def share(weights_A: np.ndarray) -> np.ndarray:
    """Weights >= 0 -> the same, of sum 1; all 0 where none is positive."""
    return weights_A / (weights_A.sum() or 1.0)


def softmax(scores_A: np.ndarray) -> np.ndarray:
    """exp(scores), of sum 1."""
    return share(np.exp(scores_A - scores_A.max()))
