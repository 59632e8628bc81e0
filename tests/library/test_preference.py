"""Walking the front: the losses end in the proportion that the preference asks for."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretrain import Chebyshev, MinNormWeighting, Weighting
from tests.support.random_steps import random_steps

Front = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

RATIOS = [1 / 9, 1 / 4, 1 / 2, 1, 2, 4, 9]


def quadratics(x_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances from two points: convex; the front is between them."""
    ends_2N = np.array([[1.0, 0.0], [-1.0, 0.5]])
    return ((x_N - ends_2N) ** 2).sum(axis=1), 2 * (x_N - ends_2N)


def fonseca_fleming(x_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 - exp(-squared distance): the front is concave, so that a weighted sum is least at its ends (Fonseca 1995)."""
    ends_2N = np.array([1.0, -1.0])[:, None] / np.sqrt(len(x_N))
    falls_2 = np.exp(-((x_N - ends_2N) ** 2).sum(axis=1))
    return 1 - falls_2, 2 * (x_N - ends_2N) * falls_2[:, None]


def descend(front: Front, rule: Weighting, steps: int = 600) -> np.ndarray:
    """The losses at the end, from a start beside the front."""
    x_N = np.array([0.3, 0.9])
    for _ in range(steps):
        losses_2, gradients_2N = front(x_N)
        alpha_2 = rule(gradients_2N @ gradients_2N.T, losses_2, np.arange(2)).alpha_A
        x_N = x_N - 0.1 * alpha_2 @ gradients_2N
    return front(x_N)[0]


def front_point(front: Front, ratio: float) -> np.ndarray:
    """The losses on the front where the second is `ratio` times the first, by bisection along the Pareto set."""
    # The Pareto set of both problems is the segment between the points where one loss is 0.
    ends_2N = {quadratics: [[1, 0], [-1, 0.5]], fonseca_fleming: [[0.5**0.5] * 2, [-(0.5**0.5)] * 2]}[front]
    start_N, end_N = np.array(ends_2N, dtype=float)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        losses_2, _ = front(start_N + middle * (end_N - start_N))
        low, high = (middle, high) if losses_2[1] > ratio * losses_2[0] else (low, middle)
    return losses_2


@pytest.mark.long
@pytest.mark.parametrize("front", [quadratics, fonseca_fleming])
def test_the_preference_walks_the_front_monotonically_to_known_points(front: Front) -> None:
    found = np.array([descend(front, Chebyshev([ratio, 1.0])) for ratio in RATIOS])
    expected = np.array([front_point(front, ratio) for ratio in RATIOS])
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert (np.diff(found[:, 0]) < 0).all()
    assert (np.diff(found[:, 1]) > 0).all()


def test_the_min_norm_point_itself_stays_where_it_meets_the_front() -> None:
    """What makes a preference necessary: from the same start, MGDA has one end, wherever the user would like to be."""
    first, second = descend(quadratics, MinNormWeighting()), front_point(quadratics, 9)
    assert not np.allclose(first, second, rtol=0.1)


@pytest.mark.long
@pytest.mark.parametrize("strength", [0.5, 1, 3])
def test_the_strength_decides_the_way_and_not_the_end(strength: float) -> None:
    rule = Chebyshev([1, 3], strength=strength)
    np.testing.assert_allclose(descend(fonseca_fleming, rule, 2000), front_point(fonseca_fleming, 1 / 3), rtol=1e-3)


@pytest.mark.long
def test_a_task_without_a_conflict_ends_below_its_share() -> None:
    """Three tasks of which the third has its optimum on the front of the others, and an own coordinate besides."""

    def losses(x_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends_3N = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0]])
        pulls_3N = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
        return (pulls_3N * (x_N - ends_3N) ** 2).sum(axis=1), 2 * pulls_3N * (x_N - ends_3N)

    x_N, rule = np.array([0.4, 0.5, 2.0]), Chebyshev([1, 1, 1])
    for _ in range(2000):
        losses_3, gradients_3N = losses(x_N)
        x_N = x_N - 0.1 * rule(gradients_3N @ gradients_3N.T, losses_3, np.arange(3)).alpha_A @ gradients_3N
    assert losses_3[:2] == pytest.approx([1, 1], rel=1e-3)
    assert losses_3[2] <= 1


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    preference_T=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    strength=st.floats(0.1, 10),
)
def test_tasks_that_lag_behind_descend(seed: int, preference_T: list[float], strength: float) -> None:
    """The inequality of the docstring, on the gradients themselves."""
    (step,) = random_steps(4, 1, seed=seed)
    alpha_T = step.weigh(Chebyshev(preference_T, strength)).alpha_A
    weighted_TN = np.array(preference_T)[:, None] * step.gradients_AN
    shares_T = alpha_T / preference_T
    shares_T = shares_T / shares_T.sum()
    relative_T = preference_T * step.losses_A / (preference_T * step.losses_A).max()
    mean = shares_T @ relative_T
    direction_N = shares_T @ weighted_TN
    kappa_squared = strength * (weighted_TN**2).sum() / 16
    bound_T = direction_N @ direction_N + kappa_squared * (2 - mean) * (relative_T - mean)
    assert (weighted_TN @ direction_N >= bound_T - 1e-9 * (weighted_TN**2).sum()).all()


def test_only_the_proportions_of_the_preference_and_of_the_losses_count() -> None:
    (step,) = random_steps(4, 1)
    expected_T = step.weigh(Chebyshev([1, 2, 3, 4])).alpha_A
    np.testing.assert_allclose(step.weigh(Chebyshev([10, 20, 30, 40])).alpha_A, expected_T)
    scaled = Chebyshev([1, 2, 3, 4])(step.gram_AA, 1e-9 * step.losses_A, step.tasks_A).alpha_A
    np.testing.assert_allclose(scaled, expected_T)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positive and finite for each task, found \[1, 0\]"):
        Chebyshev([1, 0])
    with pytest.raises(ValueError, match="strength must be > 0, found 0"):
        Chebyshev([1, 1], strength=0)
    with pytest.raises(ValueError, match="preference needs losses >= 0"):
        Chebyshev([1, 1])(np.eye(2), np.array([1, -1.0]), np.arange(2))
    assert Chebyshev([1, 1])(np.eye(2), np.zeros(2), np.arange(2)).alpha_A == pytest.approx([0.5, 0.5])
