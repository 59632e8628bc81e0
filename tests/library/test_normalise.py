"""Normalised gradients: the rule's α belongs to g_t / c_t, what is applied belongs to g_t."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretrain import Fixed, MinNormWeighting, Normalised, Uniform, Weights
from paretrain.rules.normalise import SCALES, Scale
from paretrain.rules.rule import Stateless
from tests.support.oracle import min_norm_by_enumeration
from tests.support.random_steps import Step, random_steps

T = 4


def scales_by_definition(step: Step, scale: Scale) -> np.ndarray:
    norms_A = np.linalg.norm(step.gradients_AN, axis=1)
    return {"l2": norms_A, "loss": step.losses_A, "loss+": step.losses_A * norms_A}[scale]


@pytest.mark.parametrize("scale", SCALES)
def test_the_direction_is_the_min_norm_point_of_the_normalised_gradients(scale: Scale) -> None:
    for step in random_steps(T, 10, absent=({1}, set())):
        normalised_AN = step.gradients_AN / scales_by_definition(step, scale)[:, None]
        expected_N = min_norm_by_enumeration(normalised_AN @ normalised_AN.T)[0] @ normalised_AN
        weights = step.weigh(Normalised(MinNormWeighting(), scale))
        found_N = weights.alpha_A @ step.gradients_AN
        assert weights.certified
        assert weights.alpha_A.sum() == pytest.approx(1)
        cosine = found_N @ expected_N / np.linalg.norm(found_N) / np.linalg.norm(expected_N)
        assert cosine == pytest.approx(1, abs=1e-9)
        # Which is why it is a direction of descent for every task.
        assert (step.gradients_AN @ found_N > 0).all()


@pytest.mark.long
@pytest.mark.parametrize("scale", SCALES)
def test_the_reference_applies_the_same_alpha_as_it_is(scale: Scale) -> None:
    uphill = 0
    for step in random_steps(T, 50):
        normalised_TN = step.gradients_AN / scales_by_definition(step, scale)[:, None]
        expected_T = min_norm_by_enumeration(normalised_TN @ normalised_TN.T)[0]
        found_T = step.weigh(Normalised(MinNormWeighting(), scale, reference=True)).alpha_A
        np.testing.assert_allclose(found_T, expected_T, atol=1e-8)
        uphill += (step.gram_AA @ found_T < 0).any()
    assert uphill, "the flaw that rescaling mends"


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), logs=st.lists(st.floats(-5, 5), min_size=T, max_size=T))
def test_under_l2_the_length_of_a_gradient_changes_no_direction(seed: int, logs: list[float]) -> None:
    (step,) = random_steps(T, 1, seed=seed)
    stretched = Step(np.exp(logs)[:, None] * step.gradients_AN, step.losses_A, step.tasks_A)
    found_N, expected_N = (
        one.weigh(Normalised(MinNormWeighting(), "l2")).alpha_A @ one.gradients_AN for one in (stretched, step)
    )
    found_N, expected_N = found_N / np.linalg.norm(found_N), expected_N / np.linalg.norm(expected_N)
    np.testing.assert_allclose(found_N, expected_N, atol=1e-5)


def test_uniform_weights_of_normalised_gradients() -> None:
    (step,) = random_steps(T, 1)
    raw_T = 1 / np.linalg.norm(step.gradients_AN, axis=1)
    np.testing.assert_allclose(step.weigh(Normalised(Uniform(), "l2")).alpha_A, raw_T / raw_T.sum())


class Signed(Stateless):
    """A rule whose weights may be anything, as some of TorchJD's are."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        return Weights(np.array([3.0, -2.0]))


def test_signed_weights_keep_the_sum_of_their_sizes() -> None:
    weights = Normalised(Signed(), "l2")(np.diag([4.0, 1.0]), np.ones(2), np.arange(2))
    assert weights.alpha_A == pytest.approx(np.array([1.5, -2]) * 5 / 3.5)


@pytest.mark.parametrize("scale", ["loss", "loss+"])
@pytest.mark.parametrize("tiny", [0.0, 1e-300, 1e-13])
def test_a_finished_task_is_left_out(scale: Scale, tiny: float) -> None:
    (step,) = random_steps(3, 1)
    others = Step(step.gradients_AN[[0, 2]], step.losses_A[[0, 2]], np.array([0, 2]))
    rule = Normalised(MinNormWeighting(), scale)
    found_T = rule(step.gram_AA, step.losses_A * [1, 0, 1] + [0, tiny, 0], np.arange(3)).alpha_A
    assert found_T[1] == 0
    np.testing.assert_allclose(found_T[[0, 2]], others.weigh(rule).alpha_A)
    assert rule(step.gram_AA, np.zeros(3), np.arange(3)).alpha_A.tolist() == [0, 0, 0]


def test_l2_needs_no_losses_and_the_others_refuse_negative_ones() -> None:
    gram_TT, losses_T = np.diag([1.0, 4.0]), np.array([1.0, -0.5])
    assert Normalised(Uniform(), "l2")(gram_TT, losses_T, np.arange(2)).alpha_A == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(ValueError, match=r"normalise 'loss\+' needs losses >= 0, and the task of index 1 has -0\.5"):
        Normalised(Uniform(), "loss+")(gram_TT, losses_T, np.arange(2))


def test_weights_that_are_all_zero_stay_so() -> None:
    weights = Normalised(Fixed([0, 0, 1]), "l2")(np.eye(2), np.ones(2), np.array([0, 1]))
    assert weights.alpha_A.tolist() == [0, 0]
