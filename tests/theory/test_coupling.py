from dataclasses import replace

import numpy as np
import pytest

from paretrain.theory.asymptotics import Population, coupling, ridge_limit, shared_error_covariance
from paretrain.theory.coupling import (
    Advice,
    Estimate,
    Moments,
    advice_sentence,
    couple,
    estimate_moments,
    fit_in_dual,
    learning_curve,
    penalty_grid,
    predict_own_rows,
    predict_shared_rows,
)
from paretrain.theory.coupling.prediction import binned_spectrum

EFFECTS_TT = np.array([[1.0, 0.8, -0.2], [0.8, 1.5, 0.3], [-0.2, 0.3, 0.7]]) / 40
COARSE = penalty_grid(0.03, 30, per_decade=1)
NOISE_TT = np.array([[0.5, 0.3, 0.0], [0.3, 0.6, -0.2], [0.0, -0.2, 0.4]])


def tasks_with(generator, features_NP, present_NT, effects_TT=EFFECTS_TT, noise_TT=NOISE_TT):
    """Labels by random effects with known covariances, with a large mean; NaN where a task has none."""
    num_rows, num_features = features_NP.shape
    effects_PT = generator.standard_normal((num_features, 3)) @ np.linalg.cholesky(effects_TT).T
    noise_NT = generator.standard_normal((num_rows, 3)) @ np.linalg.cholesky(noise_TT).T
    return np.where(present_NT, 7 + features_NP @ effects_PT + noise_NT, np.nan)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["own rows", "shared rows", "some of each"])
def test_the_estimates_have_no_bias(layout):
    """Rows are few and features correlated, so that a forgotten mean or a forgotten common row would show."""
    generator = np.random.default_rng(0)
    features_NP = generator.standard_normal((45, 40)) * np.geomspace(3, 0.3, 40)
    features_NP += generator.standard_normal((45, 1))  # columns correlate
    task_N = np.arange(45) % 3
    present_NT = {
        "own rows": task_N[:, None] == np.arange(3),
        "shared rows": np.ones((45, 3), dtype=bool),
        "some of each": (task_N[:, None] == np.arange(3)) | (np.arange(45) < 12)[:, None],
    }[layout]
    ratios_T = np.array([5, 20, 60])
    draws = [
        estimate_moments(features_NP, tasks_with(generator, features_NP, present_NT), ratios_T) for _ in range(400)
    ]

    for name, expected in (("effects_TT", EFFECTS_TT), ("noise_TT", NOISE_TT)):
        found = np.array([getattr(draw, name) for draw in draws])
        error = found.std(axis=0) / np.sqrt(len(draws))
        known = ~np.isnan(found[0])
        assert known.sum() == (3 if layout == "own rows" and name == "noise_TT" else 9)
        assert np.all(np.abs(found.mean(axis=0) - expected)[known] < 4 * error[known])


def test_predictions_of_the_grid_are_those_of_the_limit():
    spectrum_P = np.repeat([0.5, 2.0], 50)
    sizes_T = np.array([30.0, 60.0, 90.0])
    penalties = [coupling(3, 0.3, 2), np.eye(3)]
    moments = Moments(EFFECTS_TT, NOISE_TT)

    own_LT = predict_own_rows(penalties, spectrum_P, sizes_T).errors(moments)
    shared_LT = predict_shared_rows(penalties, spectrum_P, 60).errors(moments)

    values_J, shares_J = binned_spectrum(spectrum_P)
    population = Population(50 * np.stack([EFFECTS_TT] * 2), np.diag(NOISE_TT), values_J, shares_J)
    for number, penalty_TT in enumerate(penalties):
        np.testing.assert_allclose(own_LT[number], ridge_limit(penalty_TT, population, 100 / sizes_T).test_T, rtol=1e-9)
        shared_TT = shared_error_covariance(penalty_TT, population, NOISE_TT, 100 / 60)
        np.testing.assert_allclose(shared_LT[number], np.diag(shared_TT), rtol=1e-9)


def test_the_dual_fit_is_the_minimum_of_the_objective():
    generator = np.random.default_rng(2)
    features_NP = generator.standard_normal((12, 5))
    labels_NT = np.where(generator.random((12, 3)) < 0.6, generator.standard_normal((12, 3)) + 4, np.nan)
    penalty_TT = coupling(3, 0.2, 0.7)

    fitted = fit_in_dual(features_NP, labels_NT, np.linalg.inv(penalty_TT))

    residual_NT = np.nan_to_num(labels_NT - fitted.predict(features_NP))
    count_T = (~np.isnan(labels_NT)).sum(axis=0)
    np.testing.assert_allclose(residual_NT.sum(axis=0), 0, atol=1e-9)
    slope_PT = -features_NP.T @ residual_NT / count_T + fitted.weights_PT @ penalty_TT
    np.testing.assert_allclose(slope_PT, 0, atol=1e-9)


def own_rows(correlation, seed, rows=80, num_features=60):
    generator = np.random.default_rng(seed)
    features_NP = generator.standard_normal((3 * rows, num_features))
    effects_TT = (correlation + (1 - correlation) * np.eye(3)) / num_features
    present_NT = np.arange(3 * rows)[:, None] % 3 == np.arange(3)
    return features_NP, tasks_with(generator, features_NP, present_NT, effects_TT, 0.5 * np.eye(3))


@pytest.mark.long
def test_alike_tasks_are_advised_to_combine():
    tables = own_rows(0.95, seed=3, rows=160)
    advice = couple(*tables)

    assert advice.gain.value > 2 * advice.gain.error > 0
    assert np.all(advice.similarity_TT > 0.5)
    assert "should cut the error by" in advice_sentence(advice)
    assert "win next to nothing" in advice_sentence(replace(advice, gain=Estimate(0.002, 0.001)))
    now, more, most = learning_curve(*tables, [1, 2, 8], grid=COARSE)
    assert now.alone > more.alone > most.alone
    assert now.combined > more.combined > most.combined
    assert now.alone - now.combined > most.alone - most.combined > 0


@pytest.mark.long
def test_the_interval_of_the_advice_ends_at_all_of_the_error():
    half = np.array([0.5])
    advice = Advice("own rows", half, half, half, half, half, half, 1.0, 1.0, 1.0, Estimate(0.4, 6.0))

    assert "may cut the error by 40 % (0 to 100 %)" in advice_sentence(advice)


def test_unlike_tasks_win_nothing():
    gains = [couple(*own_rows(0.0, seed), grid=COARSE).gain for seed in range(6)]

    assert np.mean([gain.value for gain in gains]) < 0.04


@pytest.mark.long
def test_the_predicted_gain_is_the_measured_one():
    """Fit as advised and measure on many new rows, over several draws."""
    predicted, measured = [], []
    for seed in range(8):
        features_NP, labels_NT = own_rows(0.9, seed, rows=100)
        effects = np.random.default_rng(seed)
        effects.standard_normal(features_NP.shape)
        effects_PT = effects.standard_normal((60, 3)) @ np.linalg.cholesky((0.9 + 0.1 * np.eye(3)) / 60).T
        advice = couple(features_NP, labels_NT, grid=COARSE)
        deviation_T = np.nanstd(labels_NT, axis=0)
        errors = []
        for inverse_TT in (np.eye(3) / advice.own_alone, 1 / advice.common + np.eye(3) / advice.own):
            weights_PT = fit_in_dual(features_NP, labels_NT / deviation_T, inverse_TT).weights_PT
            errors.append(np.mean((((weights_PT - effects_PT / deviation_T) ** 2).sum(0)) + 0.5 / deviation_T**2))
        predicted.append(advice.gain.value)
        measured.append(1 - errors[1] / errors[0])

    assert np.mean(measured) == pytest.approx(np.mean(predicted), abs=0.05)
    assert np.mean(measured) > 0.1


def test_weights_make_the_estimates_precise():
    """Features of very different sizes, where plain products see the largest alone."""
    generator = np.random.default_rng(4)
    features_NP = generator.standard_normal((90, 60)) * np.geomspace(10, 0.1, 60)
    present_NT = np.arange(90)[:, None] % 3 == np.arange(3)
    weighted, plain = [], []
    for _ in range(40):
        labels_NT = tasks_with(generator, features_NP, present_NT)
        weighted.append(estimate_moments(features_NP, labels_NT).effects_TT)
        plain.append(estimate_moments(features_NP, labels_NT, np.full(3, 1e9)).effects_TT)

    def distance(found):
        return np.mean((np.array(found) - EFFECTS_TT) ** 2)

    assert distance(weighted) < 0.5 * distance(plain)


def test_cross_validation_predicts_the_error():
    """Effects in the weakest directions only, which no random-effects model expects."""
    generator = np.random.default_rng(5)
    scale_P = np.geomspace(3, 0.3, 80)
    effects_PT = np.where(np.arange(80)[:, None] < 40, 0, generator.standard_normal((80, 1))) * 0.4 + np.zeros((80, 3))
    inverse_TT = np.linalg.inv(coupling(3, 0.05, 0.3))
    predicted, measured = [], []
    for _ in range(40):
        features_NP = generator.standard_normal((180, 80)) * scale_P
        labels_NT = 5 + features_NP @ effects_PT + generator.standard_normal((180, 3))
        labels_NT[np.arange(180)[:, None] % 3 != np.arange(3)] = np.nan
        fitted = fit_in_dual(features_NP, labels_NT, inverse_TT)
        predicted.append(fitted.validated_T.mean())
        offset_T = fitted.intercepts_T - 5
        off_PT = (fitted.weights_PT - effects_PT) * scale_P[:, None]
        measured.append(np.mean((off_PT**2).sum(axis=0) + offset_T**2 + 1))

    assert np.mean(predicted) == pytest.approx(np.mean(measured), rel=0.05)


@pytest.mark.long
def test_shared_rows_have_their_own_theory():
    """Tasks with Γ ∝ Ω win by combining if they have their own rows, and nothing if they share them."""
    generator = np.random.default_rng(6)
    features_NP = generator.standard_normal((120, 60))
    effects_TT = (0.9 + 0.1 * np.eye(3)) / 60
    labels_NT = tasks_with(generator, features_NP, np.ones((120, 3), dtype=bool), effects_TT, 60 * effects_TT / 2)
    own_NT = np.where(np.arange(120)[:, None] % 3 == np.arange(3), labels_NT, np.nan)
    some_NT = np.where(np.arange(120)[:, None] < 12, labels_NT, own_NT)

    shared, own, some = (couple(features_NP, labels, grid=COARSE) for labels in (labels_NT, own_NT, some_NT))

    assert [shared.design, own.design, some.design] == ["shared rows", "own rows", "some rows shared"]
    assert shared.gain.value < 0.03
    assert own.gain.value > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:, :1]), "two tasks or more"),
        (lambda x, y: (x[:-1], y), "rows of features"),
        (lambda x, y: (np.where(x > 2, np.nan, x), y), "features are NaN"),
        (lambda x, y: (x, np.where(np.arange(30)[:, None] < 26, np.nan, y)), "has 4 labels"),
        (lambda x, y: (x, np.ones_like(y)), "are the same"),
        (lambda x, y: (x, np.where(y > 1, np.inf, y)), "labels are infinite"),
    ],
)
def test_what_cannot_be_advised_on_is_refused(change, message):
    generator = np.random.default_rng(7)
    features_NP, labels_NT = change(generator.standard_normal((30, 5)), generator.standard_normal((30, 3)))

    with pytest.raises(ValueError, match=message):
        couple(features_NP, labels_NT)
