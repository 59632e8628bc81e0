"""Groups of tasks that share one α: what the rule sees, and what each task gets."""

import numpy as np
import pytest

from paretrain import GradNorm, MinNormWeighting
from paretrain.rules.grouped import Grouped
from tests.support.oracle import min_norm_by_enumeration

GRADIENTS_TN = np.random.default_rng(0).standard_normal((5, 8))
GROUP_OF_T = [0, 1, 0, 2, 1]


def test_the_rule_sees_the_mean_gradients_of_groups_and_their_tasks_share_its_weights() -> None:
    gram_TT, losses_T = GRADIENTS_TN @ GRADIENTS_TN.T, np.arange(1.0, 6.0)
    weights = Grouped(MinNormWeighting(), GROUP_OF_T)(gram_TT, losses_T, np.arange(5))
    means_GN = np.stack([GRADIENTS_TN[np.array(GROUP_OF_T) == group].mean(axis=0) for group in range(3)])
    alpha_G, shortest = min_norm_by_enumeration(means_GN @ means_GN.T)
    np.testing.assert_allclose(weights.alpha_A, alpha_G[GROUP_OF_T] / np.array([2, 2, 2, 1, 2]), atol=1e-12)
    step_N = weights.alpha_A @ GRADIENTS_TN
    assert step_N @ step_N == pytest.approx(shortest)
    assert (means_GN @ step_N).min() == pytest.approx(shortest), "no group's mean loss falls less"


def test_absent_tasks_leave_their_share_to_the_others_of_their_group() -> None:
    tasks_A = np.array([0, 1, 4])
    gradients_AN = GRADIENTS_TN[tasks_A]
    alpha_A = Grouped(MinNormWeighting(), GROUP_OF_T)(gradients_AN @ gradients_AN.T, np.ones(3), tasks_A).alpha_A
    assert alpha_A.sum() == pytest.approx(1)
    assert alpha_A[1] == alpha_A[2]


def test_a_group_whose_tasks_cancel_takes_no_part_and_a_rule_with_memory_counts_groups() -> None:
    gradients_TN = np.array([[1.0, 0], [0, 1], [-1, 0], [2, 0], [0, 3]])
    rule = Grouped(GradNorm(num_tasks=3), GROUP_OF_T)
    alpha_T = rule(gradients_TN @ gradients_TN.T, np.ones(5), np.arange(5)).alpha_A
    assert alpha_T[[0, 2]].tolist() == [0, 0]
    assert alpha_T[1] == alpha_T[4] > 0
    state = rule.state_dict()
    assert len(state["weights"]) == 3
    rule.load_state_dict(state)
    nothing = gradients_TN[[0, 2]]
    assert rule(nothing @ nothing.T, np.ones(2), np.array([0, 2])).alpha_A.tolist() == [0, 0]
