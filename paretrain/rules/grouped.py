"""One weight for several tasks: a rule sees groups of tasks, and the tasks of a group share its α equally.

Shapes: T tasks, A active tasks, G groups that have an active task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paretrain.rules.rule import Weighting, Weights, refuse_to_hide_losses

VANISHING = 1e-20
"""A group takes no part where its squared gradient norm is below this fraction of its tasks' mean one: its tasks then
cancel each other."""


class Grouped:
    """Apply a rule to the mean gradients of groups of tasks (and to their mean losses).

    The gradient of a group is the mean over its active tasks, and each of them gets an equal share of the group's α. So
    what a rule promises holds for the groups' mean losses; a task whose loss pulls against the rest of its group may
    get worse.

    Args:
        rule: sees groups in place of tasks.
        group_of_T: the index of each task's group.

    Raises:
        ValueError: the rule learns from the losses of single tasks after the step.
    """

    def __init__(self, rule: Weighting, group_of_T: Sequence[int]) -> None:
        refuse_to_hide_losses(rule, "groups")
        self._rule = rule
        self._group_of_T = np.asarray(group_of_T)

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Weigh the groups, and share each one's weight among its active tasks."""
        groups_G, of_A = np.unique(self._group_of_T[tasks_A], return_inverse=True)
        shares_GA = (np.arange(len(groups_G))[:, None] == of_A).astype(np.float64)
        shares_GA /= shares_GA.sum(axis=1, keepdims=True)
        gram_GG = shares_GA @ gram_AA @ shares_GA.T
        moves_G = gram_GG.diagonal() > VANISHING * gram_AA.diagonal().mean()
        if not moves_G.any():
            return Weights(np.zeros(len(tasks_A)))
        weights = self._rule(gram_GG[np.ix_(moves_G, moves_G)], (shares_GA @ losses_A)[moves_G], groups_G[moves_G])
        return Weights(weights.alpha_A @ shares_GA[moves_G], weights.certified)

    def state_dict(self) -> dict[str, Any]:
        """Return the rule's state."""
        return self._rule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the rule's state."""
        self._rule.load_state_dict(state)
