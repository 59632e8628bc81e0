"""The library's face, on one process."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from paretrain import Balancer, Fixed, Uniform
from paretrain.gram import gram
from tests.support.losses import by_name
from tests.support.problem import Problem, two_pass_step


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
def test_one_backward_equals_two_passes(num_tasks: int) -> None:
    problem = Problem(num_tasks=num_tasks)
    x_BCHW, labels_TB = problem.data(0)
    expected = problem.model()
    expected_alpha_T = two_pass_step(expected, x_BCHW, labels_TB)
    model = problem.model()
    balancer = Balancer(tasks=num_tasks)
    outputs = model(x_BCHW, balancer=balancer)
    losses = [task.loss(outputs[t], labels_TB[t]) for t, task in enumerate(problem.tasks)]
    balancer.total(**by_name(zip(*losses, strict=True))).backward()
    torch.testing.assert_close(balancer.alpha, expected_alpha_T, atol=1e-12, rtol=0)
    for parameter, reference in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, atol=1e-14, rtol=1e-12)


def test_heads_keep_their_own_gradient_whatever_alpha_is() -> None:
    """Algorithm 2, line 2 of the paper; the authors' code weights the heads too."""
    problem = Problem(num_tasks=2)
    x_BCHW, labels_TB = problem.data(0)
    gradients = []
    for weights in ([1.0, 0.0], [0.25, 0.75]):
        model = problem.model()
        balancer = Balancer(tasks=2, weighting=Fixed(weights))
        outputs = model(x_BCHW, balancer=balancer)
        losses = [task.loss(outputs[t], labels_TB[t]) for t, task in enumerate(problem.tasks)]
        balancer.total(**by_name(zip(*losses, strict=True))).backward()
        gradients.append([parameter.grad for parameter in model.heads.parameters()])
        assert balancer.alpha.tolist() == weights
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)


def test_uniform_is_the_gradient_of_the_mean_loss() -> None:
    problem = Problem(num_tasks=3)
    x_BCHW, labels_TB = problem.data(0)
    model, expected = problem.model(), problem.model()
    outputs = expected(x_BCHW)
    means = [
        nn.functional.cross_entropy(output, labels_B, ignore_index=-1)
        for output, labels_B in zip(outputs, labels_TB, strict=True)
    ]
    (sum(means) / 3).backward()
    balancer = Balancer(tasks=3, weighting=Uniform())
    outputs = model(x_BCHW, balancer=balancer)
    losses = [task.loss(outputs[t], labels_TB[t]) for t, task in enumerate(problem.tasks)]
    balancer.total(**by_name(zip(*losses, strict=True))).backward()
    for parameter, reference in zip(model.encoder.parameters(), expected.encoder.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, atol=1e-14, rtol=1e-12)


def test_the_gram_matrix_of_float32_rows_is_that_of_float64() -> None:
    """A long row of small numbers after a large one, over several chunks: a float32 sum loses them."""
    num_entries = 200_003
    rows_TN = torch.full((1, num_entries), 1e-3)
    rows_TN[0, 0] = 100.0
    exact = 100.0**2 + (num_entries - 1) * float(np.float32(1e-3)) ** 2
    assert float(gram(rows_TN)) == pytest.approx(exact, rel=1e-12)


def test_z_of_any_shape_and_a_view_that_no_loss_uses() -> None:
    z = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    balancer = Balancer(tasks=3)
    first, second, _unused = balancer.split(z)
    sums = [(first * first).sum(), (second - 1).square().sum(), torch.zeros((), dtype=torch.float64)]
    balancer.total(sums=sums, counts=[4, 4, 4]).backward()
    assert balancer.last is not None
    assert balancer.last.active_T.tolist() == [True, True, False]
    assert z.grad is not None
    assert z.grad.shape == z.shape


class ByName(NamedTuple):
    right: Any
    left: Any


def test_losses_in_a_named_tuple_are_read_by_name_and_weights_are_given_by_name() -> None:
    z_BD = torch.randn(5, 3, requires_grad=True)
    found = []
    for as_given in (list, lambda values: ByName(left=values[0], right=values[1])):
        balancer = Balancer(["left", "right"])
        left, right = (view[:, column].square().sum() for column, view in enumerate(balancer.split(z_BD)))
        balancer.total(sums=as_given([left, 2 * right]), counts=as_given([5, 4])).backward()
        found.append(balancer.weights)
    assert found[0] == found[1]
    assert found[0]["left"] > found[0]["right"] > 0


def test_splitting_without_a_backward_is_the_identity() -> None:
    z = torch.randn(4, 3)
    with torch.no_grad():
        assert all(torch.equal(view, z) for view in Balancer(tasks=2).split(z))


def test_misuse_is_named() -> None:
    balancer = Balancer(tasks=2)
    with pytest.raises(RuntimeError, match="no α yet"):
        _ = balancer.alpha
    z = torch.randn(4, 3, requires_grad=True)
    first, second = balancer.split(z)
    with pytest.raises(ValueError, match="one loss for each of 2 tasks, found 1"):
        balancer.total(sums=[first.sum()], counts=[4])
    with pytest.raises(RuntimeError, match="call backward on that scalar"):
        (first.sum() + second.sum()).backward()
    with pytest.raises(ValueError, match="at least one task"):
        Balancer(tasks=0)
    for no_rule in ("uniform", Uniform, lambda gram_AA, losses_A, tasks_A: losses_A):
        with pytest.raises(TypeError, match=r"weighting must be a rule, such as paretrain\.Uniform\(\)"):
            Balancer(tasks=2, weighting=no_rule)  # type: ignore[arg-type]


def test_losses_that_are_not_one_tensor_a_task_are_named() -> None:
    balancer, z = Balancer(tasks=2), torch.randn(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"found no split\(\) or linear\(\)"):
        balancer.total(means=[z.mean(), z.mean()])
    views = balancer.split(z)
    means = [view.mean() for view in views]
    with pytest.raises(ValueError, match="one loss for each of 2 tasks, found 3"):
        balancer.total(means=[*means, means[0]])
    with pytest.raises(TypeError, match=r"found None\. For a task without labels"):
        balancer.total(means=[means[0], None])  # type: ignore[list-item]


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.5, 1.5], [float("nan"), 1.0]])
def test_fixed_weights_that_are_no_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="fixed weights must"):
        Fixed(weights)
