"""The statistics of studies, against scipy, published tables and enumeration."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from trainer.observe.study.statistics import (
    Estimate,
    bootstrap_interval,
    cliques,
    critical_difference,
    estimate,
    front,
    is_noise,
    plus_minus,
    standard_error_ellipse,
    t_interval,
)


def test_means_and_intervals_are_scipys():
    values = np.random.default_rng(0).normal(3, 2, 7)
    found = estimate(np.append(values, np.nan))
    assert (found.mean, found.error, found.count) == pytest.approx((values.mean(), stats.sem(values), 7))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert t_interval(values[:1]) == (-np.inf, np.inf)
    assert estimate(np.full(2, np.nan)).count == 0


def test_the_bootstrap_of_few_values_counts_all_resamples():
    values = np.array([0.1, 0.4, 1.0])
    means = [np.mean(chosen) for chosen in product(values, repeat=3)]
    assert bootstrap_interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_bootstrap_of_many_values_is_scipys():
    values = np.random.default_rng(1).exponential(1, 40)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    spread = expected.high - expected.low
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), abs=0.04 * spread)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_three_seeds_of_one_sign_are_noise_and_three_alike_are_not():
    assert is_noise(np.array([0.1, 0.4, 1.0]))
    assert bootstrap_interval(np.array([0.1, 0.4, 1.0]))[0] > 0  # The bootstrap alone would have said otherwise.
    assert not is_noise(np.array([0.9, 1.0, 1.1]))
    assert is_noise(np.array([5.0]))
    assert is_noise(np.zeros(3))


def test_what_differs_by_nothing_is_called_noise_in_nineteen_of_twenty_cases():
    draws = np.random.default_rng(3).normal(0, 1, (400, 3))
    assert np.mean([is_noise(differences) for differences in draws]) > 0.93


@pytest.mark.parametrize(("methods", "blocks", "expected"), [(4, 14, 1.25), (5, 30, 1.115), (10, 30, 2.474)])
def test_critical_differences_are_those_of_demsars_tables(methods, blocks, expected):
    """Demsar 2006: the example of section 3.2.2, and table 5(a) with q = 2.728 and 3.164."""
    assert critical_difference(methods, blocks) == pytest.approx(expected, abs=0.005)


def test_cliques_are_the_largest_groups_within_the_difference():
    ranks = np.random.default_rng(4).uniform(1, 8, 8)
    ordered = sorted(ranks)
    groups = [set(ordered[i : j + 1]) for i, j in combinations(range(8), 2) if ordered[j] - ordered[i] <= 2.0]
    largest = [group for group in groups if not any(group < other for other in groups)]
    assert cliques(ranks, 2.0) == [pytest.approx((min(group), max(group))) for group in largest]


def test_methods_of_equal_rank_are_a_clique():
    assert cliques(np.array([2.0, 1.0, 2.0]), 0.5) == [(2.0, 2.0)]
    assert cliques(np.array([1.5, 1.5, 3.0]), 1.5) == [(1.5, 3.0)]


def test_the_front_has_what_nothing_dominates():
    points = np.random.default_rng(5).uniform(0, 1, (30, 2)).round(1)  # Rounded: some are equal in one number.
    expected = {
        i for i, p in enumerate(points) if not any((q >= p).all() and (q > p).any() for q in points)
    }  # fmt: skip
    assert set(front(points)) == expected
    assert list(points[front(points), 0]) == sorted(points[front(points), 0])


def test_the_shadows_of_the_ellipse_are_the_standard_errors():
    points = np.random.default_rng(6).normal(0, 1, (5, 2)) @ np.array([[2.0, 1.5], [0.0, 0.4]])
    found = standard_error_ellipse(points)
    angle = np.radians(found.angle)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    shadows = np.hypot(found.width / 2 * along, found.height / 2 * across)
    assert shadows == pytest.approx(stats.sem(points, axis=0))
    assert found.centre == pytest.approx(points.mean(axis=0))
    one = standard_error_ellipse(points[:1])
    assert (one.width, one.height) == (0, 0)
    assert standard_error_ellipse(points[:2]).height == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("mean", "error", "count", "expected"),
    [
        (0.96812345, 0.00042, 3, "0.9681 ± 0.0004"),
        (0.96812345, 0.00122, 3, "0.9681 ± 0.0012"),
        (12345.678, 34.0, 3, "12,346 ± 34"),
        (-0.0001, 0.4, 3, "0.0 ± 0.4"),
        (0.5, 0.0, 3, "0.5 ± 0"),
        (0.51239, float("nan"), 1, "0.5124"),
        (float("nan"), float("nan"), 0, "–"),
    ],
)
def test_a_number_has_as_many_digits_as_its_error_allows(mean, error, count, expected):
    assert plus_minus(Estimate(mean, error, count)) == expected
