import numpy as np
import pytest

from paretrain.theory.asymptotics import coupling
from paretrain.theory.coupling import Moments, estimate_moments, fit_in_dual
from paretrain.theory.coupling.closed_form import fit_alone, fit_by_theory, fit_coupled
from paretrain.theory.coupling.second_moments import SecondMoments


def problem(missing, rows=60, width=7, tasks=3, seed=0):
    generator = np.random.default_rng(seed)
    features_ND = generator.standard_normal((rows, width)) * np.linspace(0.5, 2, width) + 5
    labels_NC = (
        features_ND @ generator.standard_normal((width, tasks)) + 2 * generator.standard_normal((rows, tasks)) + 9
    )
    present_NC = generator.random((rows, tasks)) >= missing
    return features_ND, np.where(present_NC, labels_NC, np.nan)


def moments_of(features_ND, labels_NC, batch=11):
    moments = SecondMoments(features_ND[0], labels_NC.shape[1])
    for start in range(0, len(features_ND), batch):
        moments.add(features_ND[start : start + batch], labels_NC[start : start + batch])
    return moments.columns()


@pytest.mark.parametrize("missing", [0, 0.4])
def test_fits_and_their_cross_validation_are_those_of_the_dual(missing):
    """The dual solves for one unknown per label and sees all labels at once."""
    features_ND, labels_NC = problem(missing)
    columns = moments_of(features_ND, labels_NC)
    scale = np.mean([np.trace(column.covariance.matrix_DD) / 7 for column in columns])
    deviation_C = np.nanstd(labels_NC, axis=0)

    found = fit_coupled(columns, [[0, 1, 2]], fit_alone(columns), steps=np.array([0.3]))

    penalty_CC = coupling(3, 0.3 * scale, 0.3 * scale)
    expected = fit_in_dual(features_ND, labels_NC / deviation_C, np.linalg.inv(penalty_CC))
    np.testing.assert_allclose(found.predict(features_ND), expected.predict(features_ND) * deviation_C, rtol=1e-9)
    np.testing.assert_allclose(found.validated_C, expected.validated_T, rtol=1e-9)


def test_a_matrix_is_kept_for_each_pattern_of_missing_labels():
    features_ND, labels_NC = problem(0, tasks=4)
    labels_NC[40:, 2] = np.nan

    columns = moments_of(features_ND, labels_NC)

    assert len({id(column.covariance) for column in columns}) == 2
    np.testing.assert_allclose(columns[2].covariance.matrix_DD, np.cov(features_ND[:40].T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(columns[0].covariance.matrix_DD, np.cov(features_ND.T, bias=True), rtol=1e-10)


@pytest.mark.parametrize("patterned", [False, True])
def test_the_sums_of_processes_are_those_of_one(patterned):
    """Each process has seen other patterns of missing labels; one has seen no row."""
    features_ND, labels_NC = problem(0, tasks=4)
    if patterned:
        labels_NC[::2, 1] = labels_NC[::2, 2] = labels_NC[35:, 2:] = np.nan
    processes = [SecondMoments(features_ND[0], 4) for _ in range(3)]
    processes[0].add(features_ND[:30], labels_NC[:30])
    processes[1].add(features_ND[30:], labels_NC[30:])
    groups = [process.groups for process in processes]
    sent = []

    def send(vector):
        sent.append(vector)
        return vector

    for process in processes:
        process.sum_over(groups, send)
    processes[0].sum_over(groups, lambda _: sum(sent))

    found, expected = processes[0].columns(), moments_of(features_ND, labels_NC)
    assert len({id(column.covariance) for column in found}) == len({id(column.covariance) for column in expected})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.covariance.matrix_DD, other.covariance.matrix_DD, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(one.cross_D, other.cross_D, rtol=1e-10, atol=1e-12)
        assert one.covariance.count == other.covariance.count
        assert one.mean == pytest.approx(other.mean)


@pytest.mark.parametrize("missing", [0, 0.4])
def test_theory_without_similarity_is_ridge_with_the_right_penalty(missing):
    """Γ and Ω diagonal: each column alone, with the penalty σ²/(n Γ/p), whatever the rows."""
    features_ND, labels_NC = problem(missing)
    columns = moments_of(features_ND, labels_NC)
    moments = Moments(np.diag([0.2, 0.1, 0.3]), np.diag([0.5, 0.7, 0.4]))

    found = fit_by_theory(columns, [[0, 1, 2]], [moments], fit_alone(columns))

    for c, column in enumerate(columns):
        penalty = moments.noise_TT[c, c] / moments.effects_TT[c, c] / column.covariance.count
        expected_D = np.linalg.solve(column.covariance.matrix_DD + penalty * np.eye(7), column.cross_D)
        np.testing.assert_allclose(found.weights_DC[:, c], expected_D * column.deviation, rtol=1e-9)


@pytest.mark.long
def test_coupling_wins_where_tasks_are_alike_and_labels_few():
    generator = np.random.default_rng(1)
    alone_error, coupled_error, theory_error = [], [], []
    for _ in range(8):
        common_D = generator.standard_normal(12)
        effects_DC = common_D[:, None] + 0.3 * generator.standard_normal((12, 4))
        features_ND, new_ND = generator.standard_normal((60, 12)), generator.standard_normal((200, 12))
        labels_NC = features_ND @ effects_DC + 3 * generator.standard_normal((60, 4))
        labels_NC[np.arange(60)[:, None] % 4 != np.arange(4)] = np.nan
        columns = moments_of(features_ND, labels_NC)
        alone = fit_alone(columns)
        deviation_C = np.nanstd(labels_NC, axis=0)
        estimated = estimate_moments(features_ND, labels_NC / deviation_C)
        coupled = fit_coupled(columns, [[0, 1, 2, 3]], alone)
        theory = fit_by_theory(columns, [[0, 1, 2, 3]], [estimated], alone)
        for errors, fit in ((alone_error, alone), (coupled_error, coupled), (theory_error, theory)):
            errors.append(((fit.predict(new_ND) - new_ND @ effects_DC) ** 2).mean())

    assert np.mean(coupled_error) < 0.8 * np.mean(alone_error)
    assert np.mean(theory_error) < 0.8 * np.mean(alone_error)


def test_a_column_with_one_value_is_refused():
    features_ND, labels_NC = problem(0)
    labels_NC[:, 1] = 3

    with pytest.raises(ValueError, match="column 1"):
        moments_of(features_ND, labels_NC)
