import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from paretrain.theory.asymptotics import (
    Population,
    common_and_own,
    coupling,
    exchangeable_gram,
    exchangeable_limit,
    mean_regularised,
    resolvent,
    ridge_limit,
)
from paretrain.theory.coupling import optimal_common_and_own, optimal_penalty, optimal_weights
from tests.theory.random_tasks import random_problem


def white(num_tasks, cosine=0.8, noise=0.3):
    return Population.white(exchangeable_gram(num_tasks, cosine), np.full(num_tasks, noise))


@pytest.mark.long
@pytest.mark.parametrize("num_tasks", [1, 2, 4, 8, 64])
@pytest.mark.parametrize(
    ("common", "own", "ratio"),
    [(1e-4, 0.5, 1), (1e-4, 0.5, 4), (0.3, 1, 2), (1e-6, 1e-3, 4), (5, 0.01, 0.1), (1e-5, 1e-5, 1)],
)
def test_alike_tasks_have_the_closed_form(num_tasks, common, own, ratio):
    closed = exchangeable_limit(num_tasks, common, own, ratio, cosine=0.8, squared_norm=1, noise=0.3)

    limit = ridge_limit(coupling(num_tasks, common, own), white(num_tasks), np.full(num_tasks, ratio))

    np.testing.assert_allclose(limit.test_T, closed.test, rtol=1e-9)
    np.testing.assert_allclose(limit.train_T, closed.train, rtol=1e-9)
    np.testing.assert_allclose(limit.kappa_T, closed.kappa, rtol=1e-9)


def ridge_by_marchenko_pastur(penalty, ratio, squared_norm, noise):
    """The known ridge risk from the Stieltjes transform of the Marchenko-Pastur law, whose closed form is quadratic."""

    def stieltjes(q):
        b = 1 - ratio + q
        return (-b + math.sqrt(b * b + 4 * ratio * q)) / (2 * ratio * q)

    m = stieltjes(penalty)
    step = 1e-6 * penalty
    slope = (stieltjes(penalty + step) - stieltjes(penalty - step)) / (2 * step)
    return noise + squared_norm * penalty**2 * -slope + noise * ratio * (m + penalty * slope)


@pytest.mark.parametrize("ratio", [0.2, 0.9, 1, 1.3, 5])
def test_one_task_is_ridge_regression(ratio):
    common, own = 0.3, 0.6
    expected = ridge_by_marchenko_pastur(common * own / (common + own), ratio, 1.7, 0.4)

    limit = ridge_limit(coupling(1, common, own), Population.white([[1.7]], [0.4]), np.array([ratio]))

    assert limit.test_T[0] == pytest.approx(expected, rel=1e-7)


def test_infinitely_many_tasks_are_the_end_of_many():
    arguments = {"cosine": 0.8, "squared_norm": 1.3, "noise": 0.3}

    many = exchangeable_limit(1e7, 1e-2, 0.5, 2, **arguments).test

    assert exchangeable_limit(math.inf, 1e-2, 0.5, 2, **arguments).test == pytest.approx(many, rel=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_several_eigenvalues_that_are_all_one_are_white_features(seed):
    problem = random_problem(seed)
    shares_J = np.array([0.2, 0.3, 0.5])
    gram_JTT = shares_J[:, None, None] * problem.population.gram_JTT
    split = Population(gram_JTT, problem.population.noise_T, np.ones(3), shares_J)

    expected = ridge_limit(problem.penalty_TT, problem.population, problem.ratio_T, problem.weights_T)
    found = ridge_limit(problem.penalty_TT, split, problem.ratio_T, problem.weights_T)

    for name in ("test_T", "train_T", "overlap_T", "squared_norm_T"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10)


@pytest.mark.parametrize("seed", range(10))
def test_the_error_is_what_overlap_and_norm_say(seed):
    problem = random_problem(seed, num_values=1 + seed % 4)

    limit = ridge_limit(problem.penalty_TT, problem.population, problem.ratio_T, problem.weights_T)

    signal_T = np.diag(problem.population.signal())
    expected_T = problem.population.noise_T + signal_T - 2 * limit.overlap_T + limit.squared_norm_T
    np.testing.assert_allclose(limit.test_T, expected_T, rtol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_kappa_solves_its_equation(seed):
    problem = random_problem(seed, num_values=3)
    values_J, shares_J = problem.population.values_J, problem.population.shares_J

    solved = resolvent(problem.penalty_TT, problem.ratio_T, problem.weights_T, values_J, shares_J)

    trace_T = sum(
        share * value * np.diag(np.linalg.inv(value * np.diag(solved.kappa_T) + problem.penalty_TT))
        for value, share in zip(values_J, shares_J, strict=True)
    )
    expected_T = problem.weights_T / (1 + problem.weights_T * problem.ratio_T * trace_T)
    np.testing.assert_allclose(solved.kappa_T, expected_T, rtol=1e-11)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_at_the_optimum_the_error_is_noise_times_weight_over_kappa(seed):
    problem = random_problem(seed)
    penalty_TT = optimal_penalty(problem.population.signal())
    weights_T = optimal_weights(problem.ratio_T, problem.population.noise_T)

    limit = ridge_limit(penalty_TT, problem.population, problem.ratio_T, weights_T)

    np.testing.assert_allclose(limit.test_T, problem.population.noise_T * weights_T / limit.kappa_T, rtol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_beats_the_optimum(seed):
    problem = random_problem(seed)
    best_TT = optimal_penalty(problem.population.signal())
    weights_T = optimal_weights(problem.ratio_T, problem.population.noise_T)
    best = ridge_limit(best_TT, problem.population, problem.ratio_T, weights_T).test_T
    generator = np.random.default_rng(seed)
    for _ in range(20):
        turn = np.eye(len(best)) + 0.1 * generator.standard_normal(best_TT.shape)
        weights = weights_T * np.exp(0.1 * generator.standard_normal(len(best)))
        other = ridge_limit(turn @ best_TT @ turn.T, problem.population, problem.ratio_T, weights).test_T
        assert np.all(other > best)  # the best is best for each task, not for the mean alone


def test_a_minimiser_finds_the_optimal_penalties_of_alike_tasks():
    tasks = {"cosine": 0.7, "squared_norm": 1.5, "noise": 0.4}

    def risk(logs):
        return exchangeable_limit(3, *np.exp(logs), 1.2, **tasks).test

    found = minimize(risk, [0, 0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15}).x

    np.testing.assert_allclose(np.exp(found), optimal_common_and_own(1.2, **tasks), rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 2, 4, 8, 64])
def test_with_the_best_penalties_the_error_does_not_descend_twice(num_tasks):
    """Features all alike: the signal grows with those that are seen (p of d = 1000), n = 50."""
    errors = []
    for features in range(10, 1001, 10):
        tasks = {"cosine": 0.8, "squared_norm": features / 1000, "noise": 0.2 + 1 - features / 1000}
        best = optimal_common_and_own(features / 50, **tasks)
        errors.append(exchangeable_limit(num_tasks, *best, features / 50, **tasks).test)

    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize("num_tasks", [1, 2, 4, 8])
def test_the_peak_is_at_as_many_features_as_all_tasks_have_samples(num_tasks):
    rows, features = 80, np.arange(20, 1400, 4)
    curve = np.array(
        [
            exchangeable_limit(num_tasks, 1e-4, 0.5, p / rows, cosine=0.8, squared_norm=1, noise=0.25).test
            for p in features
        ]
    )

    assert features[np.argmax(curve)] == pytest.approx(num_tasks * rows, rel=0.02)


def test_the_peak_has_the_height_of_the_inverse_root_of_the_common_penalty():
    commons = np.array([1e-6, 1e-8, 1e-10])
    heights = [exchangeable_limit(4, common, 0.5, 4, cosine=0.8, squared_norm=1, noise=0.25).test for common in commons]

    exponent = np.polyfit(np.log(commons), np.log(heights), 1)[0]

    assert exponent == pytest.approx(-0.5, abs=0.01)


def test_without_coupling_the_peak_returns():
    def error(own, ratio):
        return exchangeable_limit(4, 1e-6, own, ratio, cosine=0.8, squared_norm=1, noise=0.25).test

    assert error(0.5, 4) > 10 * error(0.5, 1)
    assert error(1e-5, 1) > 10 * error(1e-5, 4)
    assert min(error(1e-3, 1), error(1e-3, 4)) > 2 * error(1e-3, 2)  # both peaks


def test_coupling_is_the_inverse_of_its_kernel():
    np.testing.assert_allclose(np.linalg.inv(coupling(5, 0.3, 2)), 1 / 0.3 + np.eye(5) / 2, rtol=1e-12)


def test_mean_regularisation_is_a_coupling():
    common, own = mean_regularised(5, to_mean=0.7, to_zero=0.2)
    centre = np.eye(5) - 1 / 5

    np.testing.assert_allclose(coupling(5, common, own), 0.7 * centre + 0.2 * np.eye(5), rtol=1e-12)
    assert common_and_own(coupling(5, common, own)) == pytest.approx((common, own))


def test_a_penalty_of_another_form_has_no_common_part():
    with pytest.raises(ValueError, match="same penalty with each other"):
        common_and_own(np.array([[2, -0.2, -0.5], [-0.2, 2, -0.1], [-0.5, -0.1, 2]]))


def test_bisection_agrees_near_a_collapse_of_kappa():
    """κ of 1e-8 and less, where a plain iteration needs millions of steps."""

    def excess(log_kappa):
        kappa, small = math.exp(log_kappa), 1e-12 * 0.5 / (1e-12 + 4 * 0.5)
        return kappa * (1 + 6 * (1 / (kappa + small) + 3 / (kappa + 0.5)) / 4) - 1

    limit = ridge_limit(coupling(4, 1e-12, 0.5), white(4), np.full(4, 6.0))

    assert limit.kappa_T[0] == pytest.approx(math.exp(brentq(excess, -60, 0, xtol=1e-14)), rel=1e-9)
