"""The rules of other papers against TorchJD's implementations, their defining equations, or the vectors themselves."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from torchjd import aggregation, scalarization
from torchjd.linalg import QuadprogProjector

from paretrain import (
    DBMTL,
    FAMO,
    IMTLG,
    NTKMTL,
    AlignedMTL,
    Balancer,
    CAGrad,
    ConFIG,
    FairGrad,
    GeometricMean,
    GO4Align,
    GradVac,
    Nash,
    Normalised,
    PCGrad,
    ScaleInvariant,
    SmoothChebyshev,
    SoftOptimalUncertainty,
    Uncertainty,
    UPGrad,
    Weighting,
)
from paretrain.rules.alignment import cluster_means
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


def test_famo_is_its_authors_losses_and_adam() -> None:
    """The weighted sum of log-losses, and the logits' gradient through the softmax, by autograd and torch's Adam."""
    rule = FAMO(T, learning_rate=0.1, decay=0.05)
    logits_T = torch.zeros(T, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits_T], lr=0.1, weight_decay=0.05)
    generator = np.random.default_rng(0)
    for step in random_steps(T, 20):
        before_T = torch.tensor(step.losses_A, requires_grad=True)
        shares_T = torch.softmax(logits_T.detach(), dim=0)
        (before_T.log() * shares_T / (shares_T / before_T.detach()).sum()).sum().backward()
        np.testing.assert_allclose(step.weigh(rule).alpha_A, before_T.grad, rtol=1e-10)
        after_T = step.losses_A * generator.uniform(0.8, 1.1, T)
        rule.after_step(after_T)
        fall_T = before_T.detach().log() - torch.from_numpy(after_T).log()
        optimizer.zero_grad()
        (torch.softmax(logits_T, dim=0) @ fall_T).backward()
        optimizer.step()
    assert np.ptp(rule.state_dict()["logits"]) > 0.1
    before = rule.state_dict()
    rule.after_step(np.ones(T))
    assert rule.state_dict() == before, "no step has been made since the last call"


def test_ntkmtl_and_db_mtl_are_their_authors_combined_gradients() -> None:
    """Up to the mean in place of the sum, NTKMTL's trace, and the geometric mean of the losses in DB-MTL."""
    for step in STEPS:
        gradients_AN, num = step.gradients_AN, len(step.losses_A)
        trace = (gradients_AN**2).sum()
        ntk_N = ((trace / (gradients_AN**2).sum(axis=1)) ** 0.75) @ gradients_AN
        np.testing.assert_allclose(step.weigh(NTKMTL(0.75)).alpha_A @ gradients_AN, ntk_N / num**1.75, rtol=1e-9)
        of_logs_AN = gradients_AN / step.losses_A[:, None]
        lengths_A = np.linalg.norm(of_logs_AN, axis=1)
        dual_N = (lengths_A.max() / lengths_A) @ of_logs_AN
        scale = np.prod(step.losses_A) ** (1 / num) / num
        np.testing.assert_allclose(step.weigh(DBMTL()).alpha_A @ gradients_AN, dual_N * scale, rtol=1e-9)


def test_go4align_is_its_formula_and_its_clusters_are_the_best() -> None:
    rule, scores_T = GO4Align(T, clusters=2, rate=0.3), np.ones(T) / T
    for step in random_steps(T, 5):
        scores_T = scores_T * np.exp(-0.3 * step.losses_A)
        scores_T /= scores_T.sum()
        indicators_T = step.losses_A.sum() / step.losses_A * scores_T
        masks = [np.isin(np.arange(T), chosen) for size in (1, 2) for chosen in combinations(range(T), size)]
        means = [np.where(mask, indicators_T[mask].mean(), indicators_T[~mask].mean()) for mask in masks]
        best_T = min(means, key=lambda means_T: ((indicators_T - means_T) ** 2).sum())
        np.testing.assert_allclose(step.weigh(rule).alpha_A, best_T / T, rtol=1e-9)
    values = np.array([3.0, 1, 10, 1.5, 11, 3.5])
    assert cluster_means(values, 3).tolist() == [3.25, 1.25, 10.5, 1.25, 10.5, 3.25]
    assert cluster_means(values, 9).tolist() == values.tolist()
    assert cluster_means(values, 1).tolist() == [5.0] * 6


@pytest.mark.parametrize("rule", [ScaleInvariant(), GeometricMean(), SoftOptimalUncertainty(), DBMTL(), FAMO(3)])
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
        (lambda: NTKMTL(power=2), "power must be between 0 and 1, found 2"),
        (lambda: FAMO(2, learning_rate=0), "expected learning_rate > 0"),
        (lambda: GO4Align(2, clusters=0), "expected clusters >= 1"),
        (lambda: Normalised(FAMO(2), "l2"), "leave out normalise"),
        (lambda: Balancer(2, FAMO(2), group_of=[0, 0]), "leave out groups"),
        (lambda: GradVac(2).load_state_dict(GradVac(3).state_dict()), "has 3 tasks, this rule has 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
