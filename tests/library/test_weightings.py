"""Each rule against its formula, written in another way or in autograd, and what all rules have in common.

The file is long because every rule is held to the same properties.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.scalarization import DWA, UW

from paretrain import (
    FAMO,
    Chebyshev,
    DynamicWeightAverage,
    Fixed,
    GO4Align,
    GradNorm,
    GradVac,
    MinNormWeighting,
    Normalised,
    PCGrad,
    Random,
    Tension,
    Uncertainty,
    Uniform,
    Weighting,
)
from tests.support.oracle import min_norm_by_enumeration
from tests.support.random_steps import Step, alphas, random_steps, through_a_checkpoint
from tests.support.rules import OF_PAPERS

T = 4

RULES: dict[str, Callable[[], Weighting]] = {
    "min_norm": MinNormWeighting,
    "uniform": Uniform,
    "fixed": lambda: Fixed([0.1, 0.2, 0.3, 0.4]),
    "random": lambda: Random(T, seed=5),
    "uncertainty": lambda: Uncertainty(T, learning_rate=0.1),
    "uncertainty, closed form": lambda: Uncertainty(T, closed_form=True),
    "gradnorm": lambda: GradNorm(T),
    "dwa": lambda: DynamicWeightAverage(T, window_steps=3),
    "tension": lambda: Tension(T),
    "preference": lambda: Chebyshev([1, 2, 3, 4]),
    "normalised": lambda: Normalised(GradNorm(T), "loss+"),
    "pcgrad": lambda: PCGrad(T, seed=5),
    "gradvac": lambda: GradVac(T, seed=5),
    "famo": lambda: FAMO(T),
    "go4align": lambda: GO4Align(T, rate=0.1),
    **OF_PAPERS,
}
STATELESS = {"uniform", "fixed", "uncertainty, closed form"} | OF_PAPERS.keys()
OF_ANY_LENGTH = {"tension", "imtl_g", "config", "aligned", "cagrad", "upgrad", "pcgrad", "gradvac", "gls"}
OF_ANY_LENGTH |= {"db_mtl", "ntkmtl", "go4align"}
"""Rules whose weights need not sum to 1, or may be negative."""
SOMETIMES_ABSENT: tuple[set[int], ...] = (set(), {1}, {0, 3}, set(), {1, 2})


def pick(name: str) -> Weighting:
    return RULES[name]()


@pytest.mark.long
@pytest.mark.parametrize("name", RULES)
def test_an_interrupted_run_goes_on_with_the_same_bits(name: str) -> None:
    steps = random_steps(T, 40, absent=SOMETIMES_ABSENT)
    expected = list(alphas(pick(name), steps))
    for stop in (0, 1, 17, 33):
        before, after = pick(name), pick(name)
        list(alphas(before, steps[:stop]))
        after.load_state_dict(through_a_checkpoint(before.state_dict()))
        for found, wanted in zip(alphas(after, steps[stop:]), expected[stop:], strict=True):
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", sorted(set(RULES) - STATELESS))
def test_forgetting_the_state_is_noticed(name: str) -> None:
    """Else the test above would pass for a rule that saves nothing. min-norm's state changes its speed alone."""
    steps = random_steps(T, 40, absent=SOMETIMES_ABSENT)
    rule = pick(name)
    list(alphas(rule, steps[:20]))
    if name in ("min_norm", "preference"):
        assert rule.state_dict() != pick(name).state_dict()
        return
    assert any(
        not np.array_equal(*pair) for pair in zip(alphas(rule, steps[20:]), alphas(pick(name), steps[20:]), strict=True)
    )


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(RULES) - OF_ANY_LENGTH))
def test_weights_are_shares_of_one(name: str) -> None:
    for alpha_A in alphas(pick(name), random_steps(T, 40, absent=SOMETIMES_ABSENT)):
        assert (alpha_A >= 0).all()
        assert alpha_A.sum() == pytest.approx(1)


@pytest.mark.long
@pytest.mark.parametrize("name", RULES)
def test_one_task_alone_has_all_the_weight(name: str) -> None:
    for alpha_A in alphas(pick(name), random_steps(T, 25, absent=({0, 1, 3},))):
        assert alpha_A == pytest.approx([1])


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(RULES) - {"preference"}))
def test_where_all_tasks_agree_the_step_is_their_gradient(name: str) -> None:
    """So that a learning rate carries over from one rule to another."""
    gradient_N = np.array([0.5, -2.0, 1.0])
    step = Step(np.tile(gradient_N, (T, 1)), np.full(T, 0.7), np.arange(T))
    for alpha_A in alphas(pick(name), [step] * 3):
        np.testing.assert_allclose(alpha_A @ step.gradients_AN, gradient_N, rtol=1e-6)


SMALLER: dict[str, Callable[[], Weighting]] = {
    "random": lambda: Random(T - 1, seed=5),
    "uncertainty": lambda: Uncertainty(T - 1, learning_rate=0.1),
    "gradnorm": lambda: GradNorm(T - 1),
    "dwa": lambda: DynamicWeightAverage(T - 1, window_steps=3),
    "tension": lambda: Tension(T - 1),
    "famo": lambda: FAMO(T - 1),
    "go4align": lambda: GO4Align(T - 1, rate=0.1),
    "preference": lambda: Chebyshev([1, 2, 3]),
}


@pytest.mark.parametrize("name", SMALLER)
def test_a_task_that_is_never_there_might_as_well_not_exist(name: str) -> None:
    steps = random_steps(T, 30, absent=({T - 1},))
    for found, wanted in zip(alphas(pick(name), steps), alphas(SMALLER[name](), steps), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("uncertainty", ["log_variances"]),
        ("gradnorm", ["weights", "first_losses"]),
        ("dwa", ["means", "rates"]),
        ("tension", ["norms"]),
        ("gradvac", ["targets"]),
        ("famo", ["logits", "means", "squares", "updates"]),
        ("go4align", ["log_scores"]),
    ],
)
def test_what_is_known_of_a_task_stays_while_it_is_absent(name: str, keys: list[str]) -> None:
    rule = pick(name)
    list(alphas(rule, random_steps(T, 21)))
    before = rule.state_dict()
    list(alphas(rule, random_steps(T, 6, absent=({1},), seed=1)))
    after = rule.state_dict()
    for key in keys:
        assert after[key][1] == before[key][1]
    assert any(after[key][0] != before[key][0] for key in keys)


@pytest.mark.long
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
@pytest.mark.parametrize("name", RULES)
def test_the_unit_of_the_gradients_means_nothing(name: str, seed: int, scale: float) -> None:
    steps = random_steps(T, 13, seed=seed)
    scaled = [Step(scale * step.gradients_AN, step.losses_A, step.tasks_A) for step in steps]
    for found, wanted in zip(alphas(pick(name), scaled), alphas(pick(name), steps), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


ORDERLESS = set(RULES) - {"fixed", "random", "tension", "preference", "pcgrad", "gradvac"}
"""Rules that treat all tasks alike; the tension projects in task order, and surgery draws an order for each task."""


@pytest.mark.long
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(T)))
@pytest.mark.parametrize("name", sorted(ORDERLESS))
def test_the_order_of_the_tasks_means_nothing(name: str, seed: int, order: list[int]) -> None:
    steps = random_steps(T, 13, seed=seed)
    shuffled = [Step(step.gradients_AN[order], step.losses_A[order], step.tasks_A) for step in steps]
    for found, wanted in zip(alphas(pick(name), shuffled), alphas(pick(name), steps), strict=True):
        np.testing.assert_allclose(found, wanted[order], rtol=1e-6, atol=1e-8)


def test_min_norm_is_the_minimum_and_certified() -> None:
    rule = MinNormWeighting()
    for step in random_steps(T, 10, absent=SOMETIMES_ABSENT):
        weights = step.weigh(rule)
        assert weights.certified
        np.testing.assert_allclose(weights.alpha_A, min_norm_by_enumeration(step.gram_AA)[0], atol=1e-9)


def test_fixed_weights_are_shared_out_among_those_present() -> None:
    (step,) = random_steps(T, 1, absent=({0, 2},))
    assert step.weigh(Fixed([0.1, 0.2, 0.3, 0.4])).alpha_A == pytest.approx([1 / 3, 2 / 3])
    assert step.weigh(Fixed([0.5, 0, 0.5, 0])).alpha_A.tolist() == [0, 0]


@pytest.mark.long
def test_random_weights_depend_on_seed_and_step_alone() -> None:
    first, second = random_steps(T, 2000, seed=0), random_steps(T, 2000, seed=1, absent=({1},))
    full, without, other = Random(T, seed=5), Random(T, seed=5), Random(T, seed=6)
    drawn = np.array(list(alphas(full, first)))
    for alpha_T, alpha_A in zip(drawn, alphas(without, second), strict=True):
        np.testing.assert_allclose(alpha_A, alpha_T[[0, 2, 3]] / alpha_T[[0, 2, 3]].sum())
    assert not np.allclose(drawn[0], next(alphas(other, first)))
    # The logarithm of a ratio of two is the difference of two standard normal numbers.
    ratios = np.log(drawn[:, 0] / drawn[:, 1])
    assert ratios.mean() == pytest.approx(0, abs=0.15)
    assert ratios.var() == pytest.approx(2, abs=0.3)


def weights_in(scalarizer: torch.nn.Module, losses_T: np.ndarray) -> np.ndarray:
    """What TorchJD's scalarizer multiplies each loss with, rescaled to sum 1."""
    values_T = torch.tensor(losses_T, requires_grad=True)
    (gradient_T,) = torch.autograd.grad(scalarizer(values_T), values_T)
    return (gradient_T / gradient_T.sum()).numpy()


def test_uncertainty_is_gradient_descent_on_kendalls_objective() -> None:
    rule = Uncertainty(T, learning_rate=0.1)
    objective = UW(T).double()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for step in random_steps(T, 50):
        np.testing.assert_allclose(step.weigh(rule).alpha_A, weights_in(objective, step.losses_A), rtol=1e-12)
        optimizer.zero_grad()
        objective(torch.from_numpy(step.losses_A)).backward()
        optimizer.step()


def test_uncertainty_learns_its_closed_form() -> None:
    losses_T = np.array([0.3, 1.0, 2.0, 5.0])
    step = Step(np.eye(T), losses_T, np.arange(T))
    *_, learned_T = alphas(Uncertainty(T, learning_rate=0.5), [step] * 500)
    closed_T = step.weigh(Uncertainty(T, closed_form=True)).alpha_A
    np.testing.assert_allclose(closed_T * losses_T, 1 / np.sum(1 / losses_T))
    np.testing.assert_allclose(learned_T, closed_T, rtol=1e-9)


def test_a_finished_task_has_no_closed_form_and_a_negative_loss_none_at_all() -> None:
    rule = Uncertainty(3, closed_form=True)
    assert rule(np.eye(3), np.array([0, 1.0, 3.0]), np.arange(3)).alpha_A == pytest.approx([0, 0.75, 0.25])
    assert rule(np.eye(3), np.zeros(3), np.arange(3)).alpha_A.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"needs losses >= 0, and the task of index 2 has -0\.5"):
        rule(np.eye(2), np.array([1, -0.5]), np.array([0, 2]))


def test_gradnorm_is_gradient_descent_on_its_objective() -> None:
    rule = GradNorm(T, asymmetry=0.7, learning_rate=0.05)
    weights_T = torch.ones(T, dtype=torch.float64)
    first_T = None
    for step in random_steps(T, 50):
        np.testing.assert_allclose(step.weigh(rule).alpha_A, weights_T / T, rtol=1e-12)
        losses_T = torch.from_numpy(step.losses_A)
        first_T = losses_T if first_T is None else first_T
        ratios_T = losses_T / first_T
        gradients_TN = torch.from_numpy(step.gradients_AN)
        gradients_TN = gradients_TN / gradients_TN.norm(dim=1).square().mean().sqrt()
        leaf_T = weights_T.clone().requires_grad_()
        norms_T = torch.stack([(weight * row).norm() for weight, row in zip(leaf_T, gradients_TN, strict=True)])
        targets_T = (norms_T.mean() * (ratios_T / ratios_T.mean()) ** 0.7).detach()
        torch.nn.functional.l1_loss(norms_T, targets_T, reduction="sum").backward()
        weights_T = leaf_T.detach() - 0.05 * leaf_T.grad
        weights_T = T * weights_T / weights_T.sum()
    assert weights_T.std() > 0.1, "the weights did move"


def test_gradnorm_brings_the_norms_together_and_never_loses_a_task() -> None:
    step = Step(np.diag([0.2, 1.0, 3.0, 10.0]), np.ones(T), np.arange(T))
    *_, alpha_T = alphas(GradNorm(T, learning_rate=0.003), [step] * 5000)
    weighted_T = alpha_T * [0.2, 1.0, 3.0, 10.0]
    np.testing.assert_allclose(weighted_T, weighted_T.mean(), rtol=0.2)
    for wild_T in alphas(GradNorm(T, learning_rate=10.0), [step] * 50):
        assert (wild_T > 0).all()


def test_gradnorm_survives_a_first_loss_of_zero() -> None:
    rule = GradNorm(2)
    for losses in ([0.0, 1.0], [2.0, 1.0], [0.0, 0.0], [1.0, 1.0]):
        assert np.isfinite(rule(np.eye(2), np.array(losses), np.arange(2)).alpha_A).all()
    assert rule.state_dict()["first_losses"] == [2.0, 1.0]


@pytest.mark.parametrize("window_steps", [1, 5])
def test_dwa_is_that_of_torchjd(window_steps: int) -> None:
    rule = DynamicWeightAverage(T, window_steps=window_steps, temperature=0.5)
    theirs = DWA(temperature=0.5)
    for index, step in enumerate(random_steps(T, 31), start=1):
        np.testing.assert_allclose(step.weigh(rule).alpha_A, weights_in(theirs, step.losses_A), rtol=1e-12)
        if index % window_steps == 0:
            theirs.step()


def test_dwa_divides_by_no_zero() -> None:
    rule = DynamicWeightAverage(2, window_steps=1)
    for losses in ([0.0, 1.0], [1.0, 1.0], [0.0, 2.0], [0.0, 1.0]):
        assert np.isfinite(rule(np.eye(2), np.array(losses), np.arange(2)).alpha_A).all()


def tension_by_vectors(steps: list[Step], amount: float) -> np.ndarray:
    """The last step's direction, by the vectors themselves; every task is in every step."""
    norms_ST = np.array([np.linalg.norm(step.gradients_AN, axis=1) for step in steps])
    gradients_TN, losses_T = steps[-1].gradients_AN, steps[-1].losses_A
    gradients_TN = gradients_TN / np.sqrt((norms_ST[-1] ** 2).mean())
    lengths_T = np.linalg.norm(gradients_TN, axis=1)
    units_TN = gradients_TN / lengths_T[:, None]
    share_T = min_norm_by_enumeration(units_TN @ units_TN.T)[0]
    centre_N = share_T @ units_TN / sum(share_T / lengths_T)
    direction_N = centre_N.copy()
    if len(steps) > 10:
        for task, gradient_N in enumerate(gradients_TN):
            rate = norms_ST[-10:, task].sum() / norms_ST[-11:-1, task].sum() + np.log10(losses_T[task])
            tension = amount / (1 + np.exp(-np.e * rate + np.e)) + 1 - amount
            direction_N += tension * (gradient_N - centre_N) / np.linalg.norm(gradient_N - centre_N)
    for unit_N in units_TN:
        if unit_N @ direction_N < 0:
            direction_N = direction_N - (unit_N @ direction_N) * unit_N
    return direction_N


@pytest.mark.long
@pytest.mark.parametrize("num_steps", [1, 10, 11, 30])
@pytest.mark.parametrize("amount", [0, 0.3, 1])
def test_tension_is_that_of_the_vectors(num_steps: int, amount: float) -> None:
    projected = 0
    for seed in range(5):
        steps = random_steps(T, num_steps, seed=seed)
        *_, alpha_T = alphas(Tension(T, amount=amount), steps)
        gradients_TN = steps[-1].gradients_AN / np.sqrt((steps[-1].gradients_AN ** 2).sum(axis=1).mean())
        np.testing.assert_allclose(alpha_T @ gradients_TN, tension_by_vectors(steps, amount), rtol=1e-7, atol=1e-9)
        projected += abs(alpha_T.sum() - 1) > 1e-9
    assert projected or num_steps < 11, "some step projected"


def test_tension_of_a_finished_task_is_its_least() -> None:
    rule = Tension(2)
    for _ in range(12):
        weights = rule(np.diag([1.0, 2.0]), np.array([0.0, 1.0]), np.arange(2))
        assert np.isfinite(weights.alpha_A).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uncertainty(2, learning_rate=0.1, closed_form=True), "has no effect with closed_form"),
        (lambda: Uncertainty(2, learning_rate=0.0), "learning_rate must be > 0, found 0.0"),
        (lambda: GradNorm(2, learning_rate=-1), "learning_rate must be > 0, found -1"),
        (lambda: DynamicWeightAverage(2, temperature=0), "expected window_steps > 0 and temperature > 0"),
        (lambda: Tension(2, amount=2), "amount must be between 0 and 1, found 2"),
        (lambda: GradNorm(2).load_state_dict(GradNorm(3).state_dict()), "has 3 tasks, this rule has 2"),
        (lambda: Tension(2).load_state_dict(Tension(3).state_dict()), "has 3 tasks, this rule has 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
