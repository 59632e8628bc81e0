"""The one-pass node against Algorithm 2 as the paper prints it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from paretrain import Balancer
from paretrain.reference import descend, frank_wolfe

RATE = 0.1


def mean_squared(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


@pytest.mark.long
@pytest.mark.parametrize("num_tasks", [1, 2, 3])
def test_a_step_of_the_balancer_is_a_step_of_the_paper(num_tasks: int) -> None:
    torch.manual_seed(num_tasks)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(num_tasks)).double()
    x, ys = torch.randn(16, 4).double(), [torch.randn(16, 1).double() for _ in range(num_tasks)]
    ours, their_heads = copy.deepcopy((encoder, heads)), heads
    alpha_T = descend(encoder, list(their_heads), [mean_squared] * num_tasks, x, ys, RATE)

    balancer = Balancer(num_tasks)
    views = balancer.split(ours[0](x))
    sums = [(head(view) - y).square().sum() for head, view, y in zip(ours[1], views, ys, strict=True)]
    balancer.total(sums=sums, counts=torch.full((num_tasks,), 16.0)).backward()
    for module in ours:
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.data -= RATE * parameter.grad

    # Frank-Wolfe stops short of the optimum; the solver does not.
    torch.testing.assert_close(balancer.alpha, alpha_T, atol=1e-3, rtol=0)
    for module, reference in zip(ours, (encoder, their_heads), strict=True):
        for parameter, expected in zip(module.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, atol=1e-4, rtol=0)


def test_frank_wolfe_finds_the_shortest_of_orthogonal_mixes() -> None:
    gradients_TN = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    weights_T = 1 / torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64)
    torch.testing.assert_close(frank_wolfe(gradients_TN), weights_T / weights_T.sum(), atol=1e-3, rtol=0)
