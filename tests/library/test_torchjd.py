"""Rules of TorchJD on the Gram give the direction of TorchJD's own aggregator on the explicit Jacobian."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchjd import aggregation

from paretrain import Balancer
from paretrain.rules.from_torchjd import TorchJDWeighting
from tests.support.random_steps import Step, alphas, random_steps, through_a_checkpoint

T = 5
"""Krum scores a task by its T - 3 smallest distances. By one alone, two tasks nearest to each other would always tie,
and rounding would decide."""

PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "UPGrad": (aggregation.UPGradWeighting, aggregation.UPGrad),
    "DualProj": (aggregation.DualProjWeighting, aggregation.DualProj),
    "CAGrad": (lambda: aggregation.CAGradWeighting(c=0.5), lambda: aggregation.CAGrad(c=0.5)),
    "PCGrad": (aggregation.PCGradWeighting, aggregation.PCGrad),
    "GradVac": (aggregation.GradVacWeighting, aggregation.GradVac),
    "IMTLG": (aggregation.IMTLGWeighting, aggregation.IMTLG),
    "AlignedMTL": (aggregation.AlignedMTLWeighting, aggregation.AlignedMTL),
    "FairGrad": (lambda: aggregation.FairGradWeighting(alpha=1.0), lambda: aggregation.FairGrad(alpha=1.0)),
    "Krum": (lambda: aggregation.KrumWeighting(1), lambda: aggregation.Krum(1)),
    "MGDA": (aggregation.MGDAWeighting, aggregation.MGDA),
}
RANDOM = {"PCGrad", "GradVac"}
REMEMBERS = {"GradVac"}


def unit_steps(num_steps: int, seed: int = 0) -> list[Step]:
    """Steps in the unit of length that the rule gives to TorchJD, so that its absolute constants mean the same."""
    steps = random_steps(T, num_steps, seed=seed)
    return [Step(s.gradients_AN / np.sqrt(s.gram_AA.trace() / T), s.losses_A, s.tasks_A) for s in steps]


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_the_direction_is_that_of_the_aggregator_on_the_jacobian(name: str) -> None:
    weighting, aggregator = (make() for make in PAIRS[name])
    rule = TorchJDWeighting(weighting, T, seed=3)
    for index, step in enumerate(unit_steps(12)):
        found_N = step.weigh(rule).alpha_A @ step.gradients_AN
        torch.manual_seed(3 * 1_000_003 + index)
        expected_N = aggregator(torch.from_numpy(step.gradients_AN)).numpy()
        assert np.abs(expected_N).max() > 1e-3
        np.testing.assert_allclose(found_N, expected_N, rtol=1e-6, atol=1e-8)


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_small_gradients_are_gradients(name: str) -> None:
    """TorchJD alone takes a Gram of trace below 1e-4 for zero."""
    large, small = (TorchJDWeighting(PAIRS[name][0](), T) for _ in range(2))
    for step in unit_steps(3):
        tiny = Step(2.0**-20 * step.gradients_AN, step.losses_A, step.tasks_A)
        np.testing.assert_allclose(tiny.weigh(small).alpha_A, step.weigh(large).alpha_A, rtol=1e-9)
    if name == "UPGrad":
        alone = aggregation.UPGradWeighting()(torch.from_numpy(tiny.gram_AA))
        assert alone.numpy() == pytest.approx(np.full(T, 1 / T)), "no longer so: the rescaling can go"


@pytest.mark.parametrize("name", PAIRS)
def test_an_aggregator_is_as_good_as_its_weighting(name: str) -> None:
    (step,) = unit_steps(1)
    by_weighting, by_aggregator = (step.weigh(TorchJDWeighting(make(), T)).alpha_A for make in PAIRS[name])
    np.testing.assert_array_equal(by_weighting, by_aggregator)


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_an_interrupted_run_goes_on_with_the_same_bits(name: str) -> None:
    def make(seed: int) -> TorchJDWeighting:
        return TorchJDWeighting(PAIRS[name][0](), T, seed=seed)

    steps = unit_steps(20)
    expected = list(alphas(make(7), steps))
    for stop in (0, 1, 11):
        before, after = make(7), make(8)
        list(alphas(before, steps[:stop]))
        after.load_state_dict(through_a_checkpoint(before.state_dict()))
        for found, wanted in zip(alphas(after, steps[stop:]), expected[stop:], strict=True):
            assert found.tobytes() == wanted.tobytes()


def test_the_state_of_a_rule_that_remembers_does_count() -> None:
    steps = unit_steps(20)
    fresh, old = (TorchJDWeighting(aggregation.GradVacWeighting(), T) for _ in range(2))
    state = {**fresh.state_dict(), "step": 10}
    list(alphas(old, steps[:10]))
    fresh.load_state_dict(state)
    pairs = zip(alphas(fresh, steps[10:]), alphas(old, steps[10:]), strict=True)
    assert not all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_no_other_random_number_changes(name: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(alphas(TorchJDWeighting(PAIRS[name][0](), T), unit_steps(2)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_rules_follow_their_seed(name: str) -> None:
    one, same, other = ([*alphas(TorchJDWeighting(PAIRS[name][0](), T, seed), unit_steps(9))] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("name", sorted(set(PAIRS) - REMEMBERS))
def test_an_absent_task_is_left_out(name: str) -> None:
    (step,) = random_steps(T + 1, 1, absent=({2},))
    weighting, aggregator = (make() for make in PAIRS[name])
    scaled_AN = step.gradients_AN / np.sqrt(step.gram_AA.trace() / T)
    found_N = step.weigh(TorchJDWeighting(weighting, T + 1)).alpha_A @ scaled_AN
    torch.manual_seed(0)
    np.testing.assert_allclose(found_N, aggregator(torch.from_numpy(scaled_AN)).numpy(), rtol=1e-6, atol=1e-8)


def test_a_rule_that_remembers_knows_no_absent_tasks() -> None:
    (step,) = random_steps(T, 1, absent=({0, 2},))
    with pytest.raises(ValueError, match=r"GradVacWeighting keeps .* index \[0, 2\]"):
        step.weigh(TorchJDWeighting(aggregation.GradVacWeighting(), T))


def test_fairgrad_with_alpha_1_is_the_nash_bargaining_solution() -> None:
    """Nash-MTL's condition (Navon et al. 2022): (M α)_t α_t = 1 for all t."""
    for step in unit_steps(5):
        alpha_T = step.weigh(TorchJDWeighting(aggregation.FairGradWeighting(alpha=1.0), T)).alpha_A
        np.testing.assert_allclose(step.gram_AA @ alpha_T * alpha_T, np.ones(T), rtol=1e-4)


@pytest.mark.parametrize(
    "rule",
    [aggregation.MoDoWeighting(), aggregation.ExcessMTLWeighting(), aggregation.ConFIG(), aggregation.Mean()],
)
def test_a_rule_that_needs_more_than_the_gram_is_refused(rule: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(rule).__name__} does not work on a Gram matrix alone"):
        TorchJDWeighting(rule, T)


def test_inside_a_backward() -> None:
    """The encoder receives TorchJD's aggregate of the rows g_t."""
    z_BD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets_TBD = torch.randn(3, 6, 3, dtype=torch.float64)
    balancer = Balancer(3, TorchJDWeighting(aggregation.UPGradWeighting(), 3))
    views = balancer.split(z_BD)
    sums = [((view - target) ** 2).sum() for view, target in zip(views, targets_TBD, strict=True)]
    balancer.total(sums=sums, counts=[6] * 3).backward()
    jacobian_TN = (2 * (z_BD.detach() - targets_TBD) / 6).flatten(1)
    # The regularisation is relative to the trace, so the aggregate scales with the Jacobian.
    np.testing.assert_allclose(z_BD.grad.flatten(), aggregation.UPGrad()(jacobian_TN), rtol=1e-9)
