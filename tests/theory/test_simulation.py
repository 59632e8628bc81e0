"""The limits against seeded simulations."""

import numpy as np
import pytest

from paretrain.theory.asymptotics import (
    Population,
    canonical_directions,
    canonical_error_covariance,
    coupling,
    ridge_limit,
    shared_error_covariance,
)
from studies.double_descent.setting import Setting
from studies.double_descent.simulate import fit_ridge, simulate, simulate_equivalent


def mean_of(function, setting, draws):
    return np.mean([function(setting, np.random.default_rng((setting.rows, draw))) for draw in range(draws)])


@pytest.mark.long
def test_coupled_tasks():
    setting = Setting(num_tasks=2, rows=200, features=200, common=0.05, own=0.5)

    assert mean_of(simulate, setting, 40) == pytest.approx(setting.theory(), rel=0.05)


def test_the_equivalent_single_task():
    setting = Setting(num_tasks=2, rows=200, features=200, common=0.05, own=0.5)

    assert mean_of(simulate_equivalent, setting, 40) == pytest.approx(setting.theory(), rel=0.05)
    assert setting.theory() < 0.8 * setting.one().theory()  # so that the test could fail


@pytest.mark.long
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_classification(loss):
    setting = Setting(2, 100, 100, 0.05, 0.2, labels="sign", noise=0, seen=0.7, measure="sign", loss=loss)

    assert mean_of(simulate, setting, 20) == pytest.approx(setting.theory(), rel=0.04)


def test_relu_labels_on_some_of_the_features():
    setting = Setting(2, 150, 150, 0.1, 0.5, labels="relu", seen=0.6)

    assert mean_of(simulate, setting, 30) == pytest.approx(setting.theory(), rel=0.05)


def test_both_ways_to_fit_find_the_minimum():
    """The gradient of equation 2 vanishes, whether rows or features are more."""
    generator = np.random.default_rng(0)
    penalty_TT = coupling(3, 0.2, 0.7)
    for features in (4, 12, 40):
        features_TNP = generator.standard_normal((3, 6, features))
        labels_TN = generator.standard_normal((3, 6))
        weights_TP = fit_ridge(features_TNP, labels_TN, 0.2, 0.7)
        residual_TN = labels_TN - np.einsum("tnp,tp->tn", features_TNP, weights_TP)
        slope_TP = -np.einsum("tnp,tn->tp", features_TNP, residual_TN) / 6 + penalty_TT @ weights_TP
        np.testing.assert_allclose(slope_TP, 0, atol=1e-10)


def correlated_columns(generator, num_features, values_J):
    values_P = np.repeat(values_J, num_features // len(values_J))
    return values_P, lambda rows: generator.standard_normal((rows, num_features)) * np.sqrt(values_P)


SIGNAL_TT = np.array([[1.0, 0.7, -0.3], [0.7, 1.2, 0.1], [-0.3, 0.1, 0.8]])
NOISE_TT = np.array([[0.5, 0.3, 0.1], [0.3, 0.6, -0.1], [0.1, -0.1, 0.4]])


def test_features_with_a_covariance_and_tasks_of_different_sizes():
    generator = np.random.default_rng(1)
    num_features, values_J = 200, np.array([0.1, 1.0, 4.0])[:2]
    values_P, draw = correlated_columns(generator, num_features, values_J)
    rows_T, noise_T = [100, 200, 300], np.diag(NOISE_TT)
    penalty_TT = np.linalg.inv(SIGNAL_TT + 0.5 * np.eye(3))
    gram_JTT = np.stack([SIGNAL_TT / 2] * 2)
    population = Population(gram_JTT, noise_T, values_J, np.full(2, 0.5))
    limit = ridge_limit(penalty_TT, population, num_features / np.array(rows_T))

    errors = []
    for _ in range(15):
        effects_PT = generator.standard_normal((num_features, 3)) @ np.linalg.cholesky(SIGNAL_TT / num_features).T
        system = np.kron(penalty_TT, np.eye(num_features))
        right = []
        for t, rows in enumerate(rows_T):
            features = draw(rows)
            labels = features @ effects_PT[:, t] + np.sqrt(noise_T[t]) * generator.standard_normal(rows)
            block = slice(t * num_features, (t + 1) * num_features)
            system[block, block] += features.T @ features / rows
            right.append(features.T @ labels / rows)
        weights_TP = np.linalg.solve(system, np.concatenate(right)).reshape(3, num_features)
        errors.append(((weights_TP - effects_PT.T) ** 2) @ values_P + noise_T)

    np.testing.assert_allclose(np.mean(errors, axis=0), limit.test_T, rtol=0.05)


def shared_rows(generator, draw, num_rows, num_features):
    """Features and labels of three tasks with the same rows, and the weights behind them."""
    effects_PT = generator.standard_normal((num_features, 3)) @ np.linalg.cholesky(SIGNAL_TT / num_features).T
    features_NP = draw(num_rows)
    noise_NT = generator.standard_normal((num_rows, 3)) @ np.linalg.cholesky(NOISE_TT).T
    return effects_PT, features_NP, features_NP @ effects_PT + noise_NT


@pytest.mark.long
@pytest.mark.parametrize(("num_rows", "num_values"), [(100, 1), (300, 2)])
def test_tasks_that_share_their_rows(num_rows, num_values):
    """Every entry of the errors' covariance on new rows, and the training errors."""
    generator = np.random.default_rng(2)
    num_features, values_J = 200, np.array([1.0, 0.2])[:num_values]
    values_P, draw = correlated_columns(generator, num_features, values_J)
    penalty_TT = np.array([[0.8, -0.3, 0.1], [-0.3, 0.7, 0.0], [0.1, 0.0, 0.5]])
    gram_JTT = np.stack([SIGNAL_TT / num_values] * num_values)
    population = Population(gram_JTT, np.diag(NOISE_TT), values_J, np.full(num_values, 1 / num_values))
    penalties_K, basis_TK = np.linalg.eigh(penalty_TT)

    new, train = [], []
    for _ in range(40):
        effects_PT, features_NP, labels_NT = shared_rows(generator, draw, num_rows, num_features)
        gram_PP, pulled_PT = features_NP.T @ features_NP / num_rows, features_NP.T @ labels_NT / num_rows
        weights_PT = np.zeros((num_features, 3))
        for q, basis_T in zip(penalties_K, basis_TK.T, strict=True):
            weights_PT += np.outer(np.linalg.solve(gram_PP + q * np.eye(num_features), pulled_PT @ basis_T), basis_T)
        slope_PT = gram_PP @ weights_PT - pulled_PT + weights_PT @ penalty_TT
        np.testing.assert_allclose(slope_PT, 0, atol=1e-9)  # the directions together minimise equation 2
        off_PT = effects_PT - weights_PT
        new.append(off_PT.T @ (values_P[:, None] * off_PT) + NOISE_TT)
        residual_NT = labels_NT - features_NP @ weights_PT
        train.append(residual_NT.T @ residual_NT / num_rows)

    ratio = num_features / num_rows
    expected_TT = shared_error_covariance(penalty_TT, population, NOISE_TT, ratio)
    np.testing.assert_allclose(np.mean(new, axis=0), expected_TT, atol=0.04 * expected_TT.max())
    expected_TT = shared_error_covariance(penalty_TT, population, NOISE_TT, ratio, train=True)
    np.testing.assert_allclose(np.mean(train, axis=0), expected_TT, atol=0.05 * expected_TT.max())


def test_the_canonical_directions_are_the_best_for_shared_rows():
    generator = np.random.default_rng(3)
    population = Population.white(SIGNAL_TT, np.diag(NOISE_TT))
    canonical = canonical_directions(SIGNAL_TT, NOISE_TT, ratio=1.5)
    best_TT = canonical_error_covariance(canonical, population, NOISE_TT, 1.5)

    for _ in range(50):
        turn = np.eye(3) + 0.3 * generator.standard_normal((3, 3))
        penalty_TT = turn @ np.linalg.inv(SIGNAL_TT) @ turn.T
        other_TT = shared_error_covariance(penalty_TT, population, NOISE_TT, 1.5)
        assert np.all(np.diag(other_TT) > np.diag(best_TT))


def test_shared_rows_win_nothing_where_signal_and_noise_are_alike():
    """Γ = 2 Ω: the best coupled estimator is the best ridge regression of each task alone."""
    population = Population.white(2 * NOISE_TT, np.diag(NOISE_TT))
    together = canonical_error_covariance(canonical_directions(2 * NOISE_TT, NOISE_TT, 1.5), population, NOISE_TT, 1.5)

    for task in range(3):
        alone = Population.white([[2 * NOISE_TT[task, task]]], [NOISE_TT[task, task]])
        error = ridge_limit(np.array([[1.5 / 2]]), alone, np.array([1.5])).test_T[0]
        assert together[task, task] == pytest.approx(error, rel=1e-9)


@pytest.mark.slow
def test_many_settings_agree_with_theory():
    """40 draws leave standard errors of about 1 %: what is beyond three of them is a gap of the theory."""
    gaps, beyond_noise = [], []
    for num_tasks in (1, 2, 4):
        for cosine in (0.3, 0.9):
            for rows in (90, 200, 600):
                setting = Setting(num_tasks, rows, 300, 0.02, 0.3, cosine=cosine, noise=0.2, seen=0.5)
                peak = num_tasks * rows / setting.features
                if abs(np.log(peak)) > 0.15:
                    draws = [simulate(setting, np.random.default_rng((rows, draw))) for draw in range(40)]
                    ratios = np.array(draws) / setting.theory()
                    gaps.append(abs(ratios.mean() - 1))
                    beyond_noise.append(gaps[-1] - 3 * ratios.std(ddof=1) / len(ratios) ** 0.5)

    assert np.median(gaps) < 0.01
    assert max(beyond_noise) < 0.01
