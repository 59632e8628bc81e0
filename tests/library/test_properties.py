"""Properties of the combined gradient, over matrices of every structure, after TorchJD's tests of its aggregators.

A property that a rule has not is listed with the reason. Shapes: T tasks, N entries of a gradient.
"""

from collections.abc import Callable

import numpy as np
import pytest

from paretrain import (
    Chebyshev,
    DynamicWeightAverage,
    Fixed,
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
from paretrain.minnorm.symmetric import most_even
from paretrain.rules.normalise import Scale
from tests.support.rules import OF_PAPERS

SIZES = [(1, 5), (3, 1), (4, 4), (6, 2), (5, 9)]


def of_rank(generator: np.random.Generator, num_tasks: int, width: int, rank: int) -> np.ndarray:
    return generator.standard_normal((num_tasks, rank)) @ generator.standard_normal((rank, width))


def matrices() -> dict[str, np.ndarray]:
    """(T, N) each: of every rank, with zero rows, stationary, parallel, repeated, and of very different lengths."""
    found = {}
    for num_tasks, width in SIZES:
        generator = np.random.default_rng(num_tasks)
        size, full = f"{num_tasks} x {width}", min(num_tasks, width)
        base_TN = of_rank(generator, num_tasks, width, full)
        found[f"full rank, {size}"] = base_TN
        found[f"rank 1, {size}"] = of_rank(generator, num_tasks, width, 1)
        found[f"rank below, {size}"] = of_rank(generator, num_tasks, width, max(1, full - 1))
        found[f"strongly stationary, {size}"] = base_TN - base_TN.mean(axis=0)
        found[f"parallel, {size}"] = np.outer(generator.uniform(0.2, 3, num_tasks), base_TN[0])
        found[f"twice the same, {size}"] = np.repeat(base_TN, 2, axis=0)[:num_tasks]
        found[f"of many lengths, {size}"] = base_TN * 10.0 ** -np.arange(num_tasks)[:, None]
        found[f"a zero row, {size}"] = base_TN * (np.arange(num_tasks) > 0)[:, None]
        found[f"zero, {size}"] = np.zeros((num_tasks, width))
    return found


MATRICES = matrices()


def normalised(scale: Scale) -> Callable[[int], Weighting]:
    return lambda num_tasks: Normalised(MinNormWeighting(), scale)


def _of_any_size(rule: Callable[[], Weighting]) -> Callable[[int], Weighting]:
    return lambda num_tasks: rule()


RULES: dict[str, Callable[[int], Weighting]] = {
    "min_norm": lambda num_tasks: MinNormWeighting(),
    "l2": normalised("l2"),
    "loss": normalised("loss"),
    "loss+": normalised("loss+"),
    "preference": lambda num_tasks: Chebyshev([1.0] * num_tasks),
    "uniform": lambda num_tasks: Uniform(),
    "fixed": lambda num_tasks: Fixed([1 / num_tasks] * num_tasks),
    "random": lambda num_tasks: Random(num_tasks, seed=1),
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
    "tension": Tension,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    **{name: _of_any_size(rule) for name, rule in OF_PAPERS.items()},
}
CONFLICTS = {
    "preference": "it serves the worst task, if need be against another",
    "uniform": "it does not look at gradients",
    "fixed": "it does not look at gradients",
    "random": "it does not look at gradients",
    "uncertainty": "it does not look at gradients",
    "dwa": "it does not look at gradients",
    "gradnorm": "it looks at the lengths of gradients alone",
    "tension": "a later projection can undo an earlier one",
    "imtl_g": "its projections are equal, and may all be negative; or unequal where gradients depend on each other",
    "config": "its projections are unequal where gradients depend on each other",
    "aligned": "it gives up a direction of which little is left",
    "cagrad": "its ball around the mean gradient may hold no better direction",
    "pcgrad": "a later correction can undo an earlier one",
    "gradvac": "a later correction can undo an earlier one",
    "stch": "it does not look at gradients",
    "si": "it does not look at gradients",
    "gls": "it does not look at gradients",
    "uw_so": "it does not look at gradients",
    "db_mtl": "it looks at the lengths of gradients alone",
    "ntkmtl": "it looks at the lengths of gradients alone",
}
"""These rules may give a direction that opposes a task."""
ORDERED = {
    "random": "a number for each place in the order",
    "min_norm": "its α, where it is not unique; the combined gradient is, and is compared",
    "tension": "it projects in the order of the tasks, where they conflict",
    "cagrad": "as min_norm",
    "upgrad": "as min_norm",
}
"""The α of these rules may depend on the order of the tasks."""


def losses_of(gradients_TN: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 2, len(gradients_TN))


def weigh(name: str, gradients_TN: np.ndarray, losses_T: np.ndarray) -> np.ndarray:
    rule = RULES[name](len(gradients_TN))
    return rule(gradients_TN @ gradients_TN.T, losses_T, np.arange(len(gradients_TN))).alpha_A


@pytest.mark.long
@pytest.mark.parametrize("name", RULES)
def test_weights_are_finite_and_always_the_same(name: str) -> None:
    for structure, gradients_TN in MATRICES.items():
        losses_T = losses_of(gradients_TN)
        alpha_T = weigh(name, gradients_TN, losses_T)
        assert alpha_T.shape == losses_T.shape, structure
        assert np.isfinite(alpha_T).all(), structure
        assert np.array_equal(weigh(name, gradients_TN, losses_T), alpha_T), structure


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(RULES.keys() - CONFLICTS.keys()))
def test_no_task_is_opposed(name: str) -> None:
    for structure, gradients_TN in MATRICES.items():
        alpha_T = weigh(name, gradients_TN, losses_of(gradients_TN))
        lengths_T = np.linalg.norm(gradients_TN, axis=1)
        combined_N = alpha_T @ gradients_TN
        assert (gradients_TN @ combined_N >= -1e-6 * lengths_T * lengths_T.max()).all(), structure


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(RULES.keys() - {"random", "pcgrad", "gradvac"}))
def test_the_order_of_the_tasks_does_not_matter(name: str) -> None:
    for structure, gradients_TN in MATRICES.items():
        losses_T = losses_of(gradients_TN)
        if name == "tension" and (gradients_TN @ gradients_TN.T).min() < 0:
            continue
        order = np.random.default_rng(1).permutation(len(losses_T))
        alpha_T = weigh(name, gradients_TN, losses_T)
        other_T = weigh(name, gradients_TN[order], losses_T[order])
        size = np.abs(gradients_TN).max() or 1.0
        np.testing.assert_allclose(
            other_T @ gradients_TN[order], alpha_T @ gradients_TN, atol=2e-5 * size, err_msg=structure
        )
        if name not in ORDERED:
            np.testing.assert_allclose(other_T, alpha_T[order], atol=2e-5, err_msg=structure)


def test_the_most_even_of_the_min_norm_weights_is_one_of_them() -> None:
    for structure, gradients_TN in MATRICES.items():
        gram_TT = gradients_TN @ gradients_TN.T
        alpha_T = MinNormWeighting()(gram_TT, np.ones(len(gram_TT)), np.arange(len(gram_TT))).alpha_A
        even_T = most_even(gram_TT, alpha_T)
        size = np.abs(gradients_TN).max() or 1.0
        np.testing.assert_allclose(even_T @ gradients_TN, alpha_T @ gradients_TN, atol=1e-9 * size, err_msg=structure)
        assert even_T.sum() == pytest.approx(1)
        assert (even_T >= 0).all()
        assert even_T @ even_T <= alpha_T @ alpha_T + 1e-12


def test_parallel_gradients_share_the_weight_of_their_direction() -> None:
    lengths_T = np.array([1.0, 2.0, 4.0])
    alpha_T = weigh("l2", np.outer(lengths_T, [3.0, 4.0]), np.ones(3))
    np.testing.assert_allclose(alpha_T, (1 / lengths_T) / (1 / lengths_T).sum(), rtol=1e-9)
