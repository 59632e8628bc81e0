"""Parameter space: MGDA itself, and what MGDA-UB's step does there."""

import numpy as np
import pytest
import torch
from torch import nn

from models import task_losses
from paretrain import Balancer
from paretrain.parameters import slopes, task_gradients
from tests.support.oracle import min_norm_by_enumeration
from tests.support.problem import MISSING, Problem
from tests.support.ranks import run_ranks


def test_the_counter_example_to_theorem_1b() -> None:
    """g1 = (1, 0), g2 = (-1/2, 1), J = diag(1, 0.1): in z both tasks fall by 0.308, in θ the second one ascends."""
    theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    z = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64)) @ theta
    task_gradients_at_z = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
    balancer = Balancer(tasks=2)
    losses_T = torch.stack([view @ g for view, g in zip(balancer.split(z), task_gradients_at_z, strict=True)])
    balancer.total(sums=losses_T, counts=[1, 1]).backward()
    np.testing.assert_allclose(balancer.alpha, [7 / 13, 6 / 13], rtol=1e-12)
    assert balancer.last is not None
    np.testing.assert_allclose(balancer.last.gram_TT @ balancer.last.alpha_T, [4 / 13, 4 / 13], rtol=1e-12)

    z = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64)) @ theta
    gradients_TP = balancer.parameter_gradients(task_gradients_at_z @ z, [1, 1], [theta]).numpy()
    gram_TT = gradients_TP @ gradients_TP.T
    seen = slopes(gram_TT, balancer.last.alpha_T, balancer.last.active_T)
    np.testing.assert_allclose(seen.slopes_T, [0.3077, -0.1492], atol=1e-4)
    assert seen.num_ascending == 1
    assert seen.worst < 0

    z = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64)) @ theta
    own = nn.Parameter(torch.ones((), dtype=torch.float64))
    balancer.fill_gradients(task_gradients_at_z @ z + 0 * own, [1, 1], [theta], [own])
    np.testing.assert_allclose(balancer.alpha, [0.76 / 2.26, 1.5 / 2.26], rtol=1e-9)
    seen = slopes(gram_TT, balancer.last.alpha_T, balancer.last.active_T)
    assert seen.worst == pytest.approx(1)
    assert seen.num_ascending == 0


def fill(rank: int, problem: Problem, cut: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """α and all gradients of one step of MGDA in parameter space, on this rank's slice."""
    model = problem.model()
    mine = slice(sum(cut[:rank]), sum(cut[: rank + 1]))
    x_BCHW, labels_TB = problem.data(0)
    targets = {task.name: labels_TB[t, mine] for t, task in enumerate(problem.tasks)}
    sums_T, counts_T = task_losses(problem.tasks, model(x_BCHW[mine]), targets)
    balancer = Balancer(tasks=problem.num_tasks)
    balancer.fill_gradients(sums_T, counts_T, list(model.encoder.parameters()), list(model.heads.parameters()))
    return balancer.alpha, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.processes
def test_mgda_equals_its_definition_on_any_cut() -> None:
    problem = Problem(num_tasks=4, missing=0.3)
    model = problem.model()
    x_BCHW, labels_TB = problem.data(0)
    targets = {task.name: labels_TB[t] for t, task in enumerate(problem.tasks)}
    sums_T, counts_T = task_losses(problem.tasks, model(x_BCHW), targets)
    shared = list(model.encoder.parameters())
    rows = [torch.autograd.grad(mean, shared, retain_graph=True) for mean in sums_T / counts_T]
    gradients_TP = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    alpha_T = torch.from_numpy(min_norm_by_enumeration((gradients_TP @ gradients_TP.T).numpy())[0])
    own = torch.autograd.grad((sums_T / counts_T).sum(), list(model.heads.parameters()))
    expected = torch.cat([alpha_T @ gradients_TP, *(gradient.flatten() for gradient in own)])
    for cut in ([24], [7, 17]):
        for alpha, gradients in run_ranks(len(cut), fill, problem, cut):
            torch.testing.assert_close(alpha, alpha_T, atol=1e-10, rtol=0)
            torch.testing.assert_close(gradients, expected, atol=1e-12, rtol=1e-9)


def test_a_parameter_that_a_task_does_not_touch_has_gradient_zero() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    rows_TP = task_gradients(torch.stack([used.sum(), 2 * used.sum()]), [used, unused], Balancer(tasks=2)._ranks)
    assert rows_TP.tolist() == [[1, 1, 0, 0, 0], [2, 2, 0, 0, 0]]


def test_weights_that_each_rank_finds_from_its_own_gradients_differ_and_miss_the_min_norm_point() -> None:
    """What people try under DDP: an α a rank. The ranks disagree, and the step that they average is another one."""
    problem = Problem(num_tasks=3, missing=0.7)
    model = problem.model()
    shared = list(model.encoder.parameters())
    parts = []  # Each rank's part of the gradients of the whole batch's mean losses, (T, P).
    x_BCHW, labels_TB = problem.data(0)
    counts_T = (labels_TB != MISSING).sum(dim=1)
    for mine in (slice(0, 7), slice(7, 24)):
        targets = {task.name: labels_TB[t, mine] for t, task in enumerate(problem.tasks)}
        sums_T, _ = task_losses(problem.tasks, model(x_BCHW[mine]), targets)
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in sums_T / counts_T]
        parts.append(torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows]).numpy())
    gradients_TP = sum(parts)
    gram_TT = gradients_TP @ gradients_TP.T
    alpha_T, shortest = min_norm_by_enumeration(gram_TT)
    assert (gram_TT @ alpha_T).min() == pytest.approx(shortest), "no loss falls less than the mean of all"

    alphas = [min_norm_by_enumeration(part_TP @ part_TP.T)[0] for part_TP in parts]
    assert np.abs(alphas[0] - alphas[1]).max() > 0.1
    step_P = sum(alpha_T @ part_TP for alpha_T, part_TP in zip(alphas, parts, strict=True))
    assert (gradients_TP @ step_P).min() < 0.9 * (step_P @ step_P), "some loss falls less"
    # The sum of the ranks' own Gram matrices, which is right at the representation, is wrong here.
    summed_T, _ = min_norm_by_enumeration(sum(part_TP @ part_TP.T for part_TP in parts))
    assert np.abs(summed_T - alpha_T).max() > 0.01
