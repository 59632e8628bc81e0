import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from paretrain.theory.asymptotics import (
    LOGISTIC,
    SQUARED,
    classification_errors,
    convex_limit,
    coupling,
    exchangeable_gram,
    perceptron,
    ridge_limit,
)


@pytest.mark.parametrize("delta", [1e-3, 1, 14, 1e3, 1e6])
def test_the_proximal_operator_is_what_brentq_finds(delta):
    u = np.concatenate([np.linspace(-30, 30, 41), [-1e3, 1e3, -1e6]])
    for y in (-1.0, 1.0):
        found = LOGISTIC.proximal(u, np.full_like(u, y), np.array(delta))
        for point, nearest in zip(u, found, strict=True):

            def slope(v, point=point, y=y):
                return v - point - delta * y * expit(-y * v)

            low, high = sorted((point, point + delta * y))
            expected = brentq(slope, low - 1e-9, high + 1e-9, xtol=1e-13)
            assert nearest == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_squared_loss_agrees_with_ridge_regression(seed):
    generator = np.random.default_rng(seed)
    num_tasks = 1 + seed
    ratio_T, total_T = generator.uniform(0.3, 3, num_tasks), generator.uniform(1, 2, num_tasks)
    seen_TT = exchangeable_gram(num_tasks, 0.6, 0.7)
    penalty_TT = coupling(num_tasks, 0.2, 0.5)

    limit = convex_limit(penalty_TT, seen_TT, total_T, ratio_T, SQUARED)
    ridge = ridge_limit(penalty_TT, perceptron("sign", seen_TT, total_T), ratio_T)

    np.testing.assert_allclose(limit.error_T, classification_errors(ridge, total_T), rtol=1e-6)
    np.testing.assert_allclose(limit.squared_norm_T, ridge.squared_norm_T, rtol=1e-6)


def test_a_large_proximal_step_converges():
    """Weak penalties and few samples: δ of several hundred, where plain Newton steps overshoot."""
    limit = convex_limit(coupling(2, 1e-3, 1e-3), exchangeable_gram(2, 0.8), np.ones(2), np.full(2, 5.0), LOGISTIC)

    assert 0.2 < limit.error_T[0] < 0.45
