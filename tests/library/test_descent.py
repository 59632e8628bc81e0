"""The min-norm point of thousands of tasks, from products of a Gram matrix that is never formed.

Shapes: T tasks, B samples, C outputs a task, D representation width, N entries of a gradient.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

import paretrain.balancer
import paretrain.step
from paretrain import Balancer, MinNormWeighting, Uniform
from paretrain.factored import Factored, Factors, is_cheaper
from paretrain.gram import stacked_gram
from paretrain.minnorm import solve, solve_by_products
from paretrain.minnorm.descent import descend

T = 60


class Gradients:
    """Products with the Gram matrix of gradients, the rough ones in float32."""

    def __init__(self, gradients_TN: np.ndarray) -> None:
        self.gram_TT = gradients_TN @ gradients_TN.T
        self._rough_TT = self.gram_TT.astype(np.float32)

    def diagonal(self) -> np.ndarray:
        return self.gram_TT.diagonal().copy()

    def exact(self, x_T: np.ndarray) -> np.ndarray:
        return self.gram_TT @ x_T

    def rough(self, x_T: np.ndarray) -> np.ndarray:
        return (self._rough_TT @ x_T.astype(np.float32)).astype(np.float64)


RNG = np.random.default_rng(0)
INDEPENDENT = RNG.standard_normal((T, 2 * T))
GRADIENTS = {
    "independent": INDEPENDENT,
    "one outside": np.concatenate([INDEPENDENT[:-1], 9 + INDEPENDENT[-1:]]),
    "correlated": INDEPENDENT + 2 * RNG.standard_normal(2 * T),
    "norms over six decades": INDEPENDENT * 10 ** np.linspace(-3, 3, T)[:, None],
    "zero inside the hull": INDEPENDENT[:, : T // 4],
    "more tasks than dimensions": INDEPENDENT[:, : T // 4] + 2,
    "duplicated": INDEPENDENT[RNG.integers(0, T // 4, T)] + 0.5,
    "nearly collinear": RNG.standard_normal(2 * T) + 1e-4 * INDEPENDENT,
    "two tasks": INDEPENDENT[:2],
    "one task": INDEPENDENT[:1],
}


@pytest.mark.parametrize("tolerance", [1e-8, 1e-11])
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_value_is_that_of_the_exact_solver_within_the_certificate(name: str, tolerance: float) -> None:
    gradients = Gradients(GRADIENTS[name])
    found, exact = solve_by_products(gradients, tolerance=tolerance), solve(gradients.gram_TT)
    scale = gradients.diagonal().mean()
    assert found.certified
    assert found.alpha_T.min() >= 0
    assert found.alpha_T.sum() == pytest.approx(1, abs=1e-12)
    slopes_T = gradients.gram_TT @ found.alpha_T
    assert found.alpha_T @ slopes_T - slopes_T.min() <= tolerance * scale + 1e-14 * scale
    assert found.gap <= max(1e-4 * found.value, 1e-12 * scale)
    assert -1e-13 * scale <= found.value - exact.value <= 2 * tolerance * scale


def test_a_solve_that_ends_early_says_what_it_has_not_reached() -> None:
    gradients = Gradients(INDEPENDENT)
    scale = gradients.diagonal().mean()
    early, late = (descend(gradients, 1e-12, most) for most in (6, 600))
    gaps = [found.alpha_T @ found.slopes_T - found.slopes_T.min() for found in (early, late)]
    assert early.products <= 6
    assert gaps[0] > 1e-6 * scale > 1e-12 * scale >= gaps[1]
    np.testing.assert_array_equal(early.slopes_T, gradients.gram_TT @ early.alpha_T)


def factors(num_outputs: int, sum_to_zero: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_outputs)
    errors_BTC = torch.randn(7, T, num_outputs, generator=generator, dtype=torch.float64)
    if sum_to_zero:
        errors_BTC[..., 0] = -errors_BTC[..., 1:].sum(dim=2)
    return errors_BTC, torch.randn(T, num_outputs, 9, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("num_outputs", "sum_to_zero"), [(1, False), (2, True), (3, True), (3, False)])
def test_products_of_the_factors_are_those_of_the_gram_matrix(num_outputs: int, sum_to_zero: bool) -> None:
    errors_BTC, weight_TCD = factors(num_outputs, sum_to_zero)
    gram_TT, x_T = stacked_gram(errors_BTC, weight_TCD), torch.rand(T, dtype=torch.float64)
    found = Factored([Factors(errors_BTC, weight_TCD), 2 * gram_TT], scale=0.5)
    torch.testing.assert_close(found.diagonal(), 1.5 * gram_TT.diagonal(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.times(x_T, exact=True), 1.5 * gram_TT @ x_T, rtol=0, atol=1e-9)
    narrow = Factored([Factors(errors_BTC.float(), weight_TCD.float())])
    torch.testing.assert_close(narrow.times(x_T, exact=False), gram_TT @ x_T, rtol=1e-4, atol=1e-2)
    assert narrow.times(x_T, exact=False).dtype == torch.float64


def test_a_gradient_that_is_not_finite_spoils_no_other_product() -> None:
    errors_BTC, weight_TCD = factors(2, sum_to_zero=False)
    gram_TT, x_T = stacked_gram(errors_BTC, weight_TCD), torch.rand(T, dtype=torch.float64)
    x_T[5] = 0
    errors_BTC[0, 5, 1] = torch.nan
    found = Factored([Factors(errors_BTC, weight_TCD)])
    assert (~found.diagonal().isfinite()).nonzero().flatten().tolist() == [5]
    others = torch.arange(T) != 5
    for exact, tolerance in ((True, 1e-9), (False, 1e-2)):
        torch.testing.assert_close(found.times(x_T, exact)[others], (gram_TT @ x_T)[others], rtol=1e-4, atol=tolerance)


def test_thousands_of_tasks_with_few_samples_are_multiplied_and_others_are_not() -> None:
    assert is_cheaper(4096, 2, 512, 64)
    assert is_cheaper(10_000, 2, 512, 64)
    assert not is_cheaper(2048, 2, 512, 4096)


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find α by products for few tasks, too."""
    monkeypatch.setattr(paretrain.step, "is_cheaper", lambda *_: True)
    monkeypatch.setattr(paretrain.balancer, "MANY_TASKS", 2)


def step(balancer: Balancer, splits: int = 1) -> tuple[list[Tensor], Tensor]:
    """The gradients of z and of the heads' weights, and their Gram matrix."""
    generator = torch.Generator().manual_seed(1)
    z_BD = torch.randn(8, 6, generator=generator).requires_grad_()
    weight_TCD = torch.randn(T, 2, 6, generator=generator).requires_grad_()
    goal_BTC = torch.randn(8, T, 2, generator=generator)
    outputs_BTC = torch.cat([balancer.linear(part_BD, weight_TCD) for part_BD in z_BD.chunk(splits)])
    errors_BTC = outputs_BTC - goal_BTC
    sums_T = errors_BTC.square().sum((0, 2)) / 2 * (torch.arange(T) < T - 1)
    balancer.total(sums=3 * sums_T, counts=[8] * (T - 1) + [0]).mul(7).backward()
    assert z_BD.grad is not None
    assert weight_TCD.grad is not None
    return [z_BD.grad, weight_TCD.grad], stacked_gram(3 / 8 * errors_BTC.detach(), weight_TCD.detach())


@pytest.mark.parametrize("splits", [1, 2])
def test_a_step_by_products_is_the_step_by_the_gram_matrix(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Balancer(T)
    references, _ = step(reference)
    always(monkeypatch)
    balancer = Balancer(T)
    gradients, gram_TT = step(balancer, splits)
    assert balancer.last is not None
    assert reference.last is not None
    assert balancer.last.gram_TT is None
    assert balancer.last.certified
    scale = float(gram_TT.diagonal()[:-1].mean())
    assert balancer.last.min_norm == pytest.approx(reference.last.min_norm, abs=2e-8 * scale)
    slopes_T = (gram_TT @ balancer.alpha)[:-1]
    assert float(balancer.alpha @ (gram_TT @ balancer.alpha) - slopes_T.min()) == pytest.approx(
        balancer.last.gap, abs=1e-8 * scale
    )
    assert balancer.alpha[-1] == 0
    difference_BD = (gradients[0] - references[0]).double() / 7
    assert float(difference_BD.square().sum()) <= 1e-8 * scale
    torch.testing.assert_close(gradients[1], references[1])


def test_equal_weights_by_products_are_those_by_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Balancer(T, Uniform())
    references, _ = step(reference)
    always(monkeypatch)
    balancer = Balancer(T, Uniform())
    gradients, gram_TT = step(balancer)
    assert balancer.last is not None
    assert reference.last is not None
    assert balancer.last.gram_TT is None
    assert torch.equal(balancer.alpha, reference.alpha)
    scale = float(gram_TT.diagonal()[:-1].mean())
    assert balancer.last.min_norm == pytest.approx(reference.last.min_norm, abs=1e-6 * scale)
    assert balancer.last.gap == pytest.approx(reference.last.gap, abs=1e-6 * scale)
    torch.testing.assert_close(gradients, references)


def test_a_rule_of_ones_own_keeps_its_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(MinNormWeighting):
        pass

    always(monkeypatch)
    balancer = Balancer(T, Mine())
    step(balancer)
    assert balancer.last is not None
    assert balancer.last.gram_TT is not None


def test_a_resumed_run_finds_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the solver found before changes nothing."""
    always(monkeypatch)
    balancer = Balancer(T)
    step(balancer)
    first_T = balancer.alpha
    step(balancer)
    assert torch.equal(balancer.alpha, first_T)
