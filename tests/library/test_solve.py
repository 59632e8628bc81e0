"""The decision of one step, without processes."""

import numpy as np
import pytest

from paretrain import Fixed, MinNormWeighting, Uniform, Weights
from paretrain.rules.rule import Stateless
from paretrain.solve import solve_step
from paretrain.verdict import Batch, Outcome, Verdict, verdict_size

GRAM_TT = np.diag([1.0, 4.0, 9.0])


def batch(
    gram_TT: np.ndarray = GRAM_TT,
    losses_T: tuple[float, ...] = (1.0, 1.0, 1.0),
    counts_T: tuple[float, ...] = (8.0, 8.0, 8.0),
    broken_W: tuple[float, ...] = (0.0, 0.0),
) -> Batch:
    return Batch(gram_TT, np.array(losses_T), np.array(counts_T), np.array(broken_W))


def test_orthogonal_gradients_are_weighed_by_their_inverse_squares() -> None:
    verdict = solve_step(batch(), MinNormWeighting())
    expected_T = 1 / GRAM_TT.diagonal()
    assert verdict.outcome is Outcome.WEIGHED
    np.testing.assert_allclose(verdict.alpha_T, expected_T / expected_T.sum(), rtol=1e-12)
    np.testing.assert_allclose(verdict.min_norm, 1 / expected_T.sum(), rtol=1e-12)
    assert verdict.certified
    assert verdict.gap < 1e-12


def test_absent_and_zero_tasks_leave_the_solve() -> None:
    gram_TT = GRAM_TT.copy()
    gram_TT[2] = 0
    verdict = solve_step(batch(gram_TT, counts_T=(8, 0, 8)), Uniform())
    assert verdict.active_T.tolist() == [True, False, False]
    assert verdict.alpha_T.tolist() == [1, 0, 0]


def test_a_step_without_any_label_has_no_active_task() -> None:
    verdict = solve_step(batch(counts_T=(0, 0, 0)), MinNormWeighting())
    assert verdict.outcome is Outcome.WEIGHED
    assert not verdict.active_T.any()
    assert not verdict.alpha_T.any()


@pytest.mark.parametrize(
    ("on_nonfinite", "scaled", "outcome"),
    [
        ("stop", False, Outcome.STOPPED),
        ("skip_step", False, Outcome.SKIPPED),
        ("drop_task", False, Outcome.WEIGHED),
        ("stop", True, Outcome.OVERFLOWED),
    ],
)
def test_a_gradient_that_is_not_finite(on_nonfinite: str, scaled: bool, outcome: Outcome) -> None:
    gram_TT = GRAM_TT.copy()
    gram_TT[1] = gram_TT[:, 1] = np.nan
    verdict = solve_step(batch(gram_TT, broken_W=(0, 1)), Uniform(), on_nonfinite, scaled)  # type: ignore[arg-type]
    assert verdict.outcome is outcome
    assert verdict.broken_gradients_T.tolist() == [False, True, False]
    assert verdict.active_T.tolist() == ([True, False, True] if outcome is Outcome.WEIGHED else [False] * 3)


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    assert solve_step(batch(losses_T=(1, np.inf, 1)), Uniform(), "stop", scaled=True).outcome is Outcome.STOPPED


def test_nothing_is_left_to_drop_to() -> None:
    found = solve_step(batch(losses_T=(np.nan, 1, 1), counts_T=(8, 0, 0)), Uniform(), "drop_task")
    assert found.outcome is Outcome.STOPPED


class Wrong(Stateless):
    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        return Weights(np.ones(len(tasks_A) + 1))


def test_a_rule_must_answer_one_weight_a_task() -> None:
    with pytest.raises(ValueError, match="expected 3 finite weights"):
        solve_step(batch(), Wrong())


def test_a_verdict_travels_whole() -> None:
    verdict = solve_step(batch(losses_T=(1, np.nan, 1), broken_W=(0, 1)), Fixed([0.5, 0.25, 0.25]), "drop_task")
    packed = verdict.pack()
    assert packed.shape == (verdict_size(3, 2),)
    there = Verdict.unpack(packed, 3)
    for name, value in vars(verdict).items():
        np.testing.assert_array_equal(getattr(there, name), value != 0 if name == "broken_W" else value, err_msg=name)
