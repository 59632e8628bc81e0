"""The rules of other papers against TorchJD's implementations, their defining equations, or the vectors themselves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchjd import aggregation, scalarization
from torchjd.linalg import QuadprogProjector

from paretrain import (
    IMTLG,
    AlignedMTL,
    CAGrad,
    ConFIG,
    FairGrad,
    GeometricMean,
    GradVac,
    Nash,
    PCGrad,
    ScaleInvariant,
    SmoothChebyshev,
    SoftOptimalUncertainty,
    Uncertainty,
    UPGrad,
    Weighting,
)
from paretrain.rules.surgery import meetings
from tests.library.test_weightings import weights_in
from tests.support.random_steps import Step, random_steps

T = 4

STEPS = [step for num_tasks in (2, 4, 7) for step in random_steps(num_tasks, 6, seed=num_tasks)]


def unit(step: Step) -> np.ndarray:
    """The gradients, with a mean squared length of 1: TorchJD compares lengths with constants."""
    return step.gradients_AN / np.sqrt((step.gradients_AN**2).sum(axis=1).mean())


@pytest.mark.long
@pytest.mark.parametrize(
    ("rule", "theirs", "per_task", "accuracy"),
    [
        (IMTLG(), aggregation.IMTLG(), False, 1e-9),
        (AlignedMTL(), aggregation.AlignedMTL(), False, 1e-9),
        (ConFIG(), aggregation.ConFIG(), True, 1e-9),
        (UPGrad(), aggregation.UPGrad(projector=QuadprogProjector(reg_eps=1e-9)), False, 1e-6),
        (CAGrad(c=0.4), aggregation.CAGrad(c=0.4), False, 1e-4),
        (CAGrad(c=0.9), aggregation.CAGrad(c=0.9), False, 1e-4),
    ],
)
def test_the_combined_gradient_is_that_of_torchjd(
    rule: Weighting, theirs: torch.nn.Module, per_task: bool, accuracy: float
) -> None:
    """Up to the mean in place of the sum, CAGrad's 1 + c, and the accuracy of their solvers."""
    for step in STEPS:
        combined_N = theirs(torch.from_numpy(unit(step))).numpy()
        scale = len(step.losses_A) if per_task else 1 + theirs.c if isinstance(theirs, aggregation.CAGrad) else 1
        weights = step.weigh(rule)
        assert weights.certified
        np.testing.assert_allclose(weights.alpha_A @ unit(step), combined_N / scale, atol=accuracy)


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 10])
def test_fairgrad_solves_its_equation_and_nash_is_its_case_of_one(alpha: float) -> None:
    for step in STEPS:
        rule = Nash() if alpha == 1 else FairGrad(alpha)
        weights = step.weigh(rule)
        assert weights.certified
        assert (weights.alpha_A > 0).all()
        # G w = w^(-1/alpha) for a multiple of the weights: then (G w) w^(1/alpha) is the same for all tasks.
        same_A = (unit(step) @ (weights.alpha_A @ unit(step))) * weights.alpha_A ** (1 / alpha)
        np.testing.assert_allclose(same_A, same_A.mean(), rtol=1e-5)


def test_nash_is_stationary_where_no_bargain_is_left() -> None:
    gradients_TN = np.array([[1.0, 0], [-1, 1], [0, -1]])
    weights = Nash()(gradients_TN @ gradients_TN.T, np.ones(3), np.arange(3))
    assert weights.certified
    np.testing.assert_allclose(weights.alpha_A, 1 / 3, atol=1e-6)


def test_cagrad_is_no_worse_than_any_direction_of_its_ball() -> None:
    generator = np.random.default_rng(0)
    for step in STEPS:
        gradients_TN, c = unit(step), 0.5
        direction_N = (1 + c) * step.weigh(CAGrad(c)).alpha_A @ gradients_TN
        mean_N = gradients_TN.mean(axis=0)
        radius = c * np.linalg.norm(mean_N)
        assert np.linalg.norm(direction_N - mean_N) == pytest.approx(radius, rel=1e-6)
        for near in (1.0, 0.1):
            other_N = direction_N + near * radius * generator.normal(size=(200, len(mean_N)))
            away_N = other_N - mean_N
            others_N = mean_N + away_N * np.minimum(1, radius / np.linalg.norm(away_N, axis=1, keepdims=True))
            assert (others_N @ gradients_TN.T).min(axis=1).max() <= (gradients_TN @ direction_N).min() + 1e-9


def surgery_by_vectors(gradients_TN: np.ndarray, orders: list[list[int]], targets_TT: np.ndarray | None) -> np.ndarray:
    """The mean of the gradients, each corrected by the others in its order; GradVac's where there are targets."""
    corrected_TN = gradients_TN.copy()
    for i, order in enumerate(orders):
        for j in order:
            mine_N, other_N = corrected_TN[i], gradients_TN[j]
            inner, lengths = mine_N @ other_N, np.linalg.norm(mine_N) * np.linalg.norm(other_N)
            if targets_TT is None:
                if inner < 0:
                    corrected_TN[i] = mine_N - inner / (other_N @ other_N) * other_N
                continue
            cosine, target = inner / lengths, targets_TT[i, j]
            if cosine < target:
                wanted = target * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - target**2)
                along = np.linalg.norm(mine_N) * wanted / (np.linalg.norm(other_N) * np.sqrt(1 - target**2))
                corrected_TN[i] = mine_N + along * other_N
                reached = corrected_TN[i] @ other_N / np.linalg.norm(corrected_TN[i]) / np.linalg.norm(other_N)
                assert reached == pytest.approx(target), "the correction reaches the target"
            targets_TT[i, j] = 0.7 * target + 0.3 * cosine
    return corrected_TN.mean(axis=0)


@pytest.mark.parametrize("vaccine", [False, True])
def test_surgery_is_that_of_the_vectors(vaccine: bool) -> None:
    rule = GradVac(T, seed=3, decay=0.3) if vaccine else PCGrad(T, seed=3)
    targets_TT = np.zeros((T, T)) if vaccine else None
    for number, step in enumerate(random_steps(T, 20)):
        orders: list[list[int]] = [[] for _ in range(T)]
        for i, j in meetings(T, step.tasks_A, 3, number):
            for one, other in zip(i.tolist(), j.tolist(), strict=True):
                orders[one].append(other)
        assert [sorted([*order, i]) for i, order in enumerate(orders)] == [list(range(T))] * T
        expected_N = surgery_by_vectors(step.gradients_AN, orders, targets_TT)
        np.testing.assert_allclose(step.weigh(rule).alpha_A @ step.gradients_AN, expected_N, rtol=1e-7)


def test_the_orders_change_from_step_to_step_and_with_the_seed_alone() -> None:
    def orders(seed: int, step: int) -> list[list[int]]:
        return [j.tolist() for _, j in meetings(6, np.arange(6), seed, step)]

    assert orders(0, 0) == orders(0, 0) != orders(0, 1)
    assert orders(0, 0) != orders(1, 0)


def test_pcgrad_of_two_tasks_has_one_order_and_is_torchjds() -> None:
    for step in random_steps(2, 20):
        combined_N = aggregation.PCGrad()(torch.from_numpy(unit(step))).numpy()
        np.testing.assert_allclose(step.weigh(PCGrad(2)).alpha_A @ unit(step), combined_N / 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("rule", "objective"),
    [
        (SmoothChebyshev(mu=0.3), scalarization.STCH(mu=0.3, weights=torch.ones(T))),
        (ScaleInvariant(), scalarization.GeometricMean()),
    ],
)
def test_weights_of_losses_are_the_gradient_of_torchjds_scalar(rule: Weighting, objective: torch.nn.Module) -> None:
    for step in random_steps(T, 10):
        np.testing.assert_allclose(step.weigh(rule).alpha_A, weights_in(objective, step.losses_A), rtol=1e-12)


def test_gls_is_the_gradient_of_the_geometric_mean_itself() -> None:
    for step in random_steps(T, 10):
        values_T = torch.tensor(step.losses_A, requires_grad=True)
        (gradient_T,) = torch.autograd.grad(scalarization.GeometricMean()(values_T), values_T)
        np.testing.assert_allclose(step.weigh(GeometricMean()).alpha_A, gradient_T, rtol=1e-12)


def test_uw_so_is_its_formula() -> None:
    alpha_A = SoftOptimalUncertainty(temperature=0.5)(np.eye(2), np.array([1.0, 2.0]), np.arange(2)).alpha_A
    assert alpha_A[0] / alpha_A[1] == pytest.approx(np.exp(1 / 0.5 - 1 / (2 * 0.5)))


def test_imtl_l_is_uncertainty_with_half_the_learning_rate() -> None:
    rule = Uncertainty(T, learning_rate=0.1)
    objective = scalarization.IMTLL(T).double()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    for step in random_steps(T, 30):
        np.testing.assert_allclose(step.weigh(rule).alpha_A, weights_in(objective, step.losses_A), rtol=1e-12)
        optimizer.zero_grad()
        objective(torch.from_numpy(step.losses_A)).backward()
        optimizer.step()


@pytest.mark.parametrize("rule", [ScaleInvariant(), GeometricMean(), SoftOptimalUncertainty()])
def test_a_finished_task_has_no_weight(rule: Weighting) -> None:
    alpha_A = rule(np.eye(3), np.array([0.0, 1, 1]), np.arange(3)).alpha_A
    assert alpha_A == pytest.approx([0, 0.5, 0.5])
    assert rule(np.eye(3), np.zeros(3), np.arange(3)).alpha_A.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="needs losses >= 0"):
        rule(np.eye(2), np.array([1, -0.5]), np.arange(2))


@pytest.mark.parametrize("make", [IMTLG, ConFIG])
def test_opposite_gradients_have_no_equal_projections(make: Callable[[], Weighting]) -> None:
    gradients_TN = np.array([[1.0, 2], [-3, -6]])
    assert make()(gradients_TN @ gradients_TN.T, np.ones(2), np.arange(2)).alpha_A.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FairGrad(alpha=0), "alpha must be between 0.5 and 10, found 0"),
        (lambda: CAGrad(c=1), "c must be above 0 and below 1, found 1"),
        (lambda: GradVac(2, decay=2), "decay must be between 0 and 1, found 2"),
        (lambda: SmoothChebyshev(mu=0), "mu must be > 0, found 0"),
        (lambda: SoftOptimalUncertainty(temperature=-1), "temperature must be > 0, found -1"),
        (lambda: GradVac(2).load_state_dict(GradVac(3).state_dict()), "has 3 tasks, this rule has 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
