"""The promise: α and parameters are those of one process with the whole batch, on any number of processes."""

import pytest
import torch
from torch import Tensor, nn

from paretrain import Balancer
from tests.support.problem import Problem, train_by_definition
from tests.support.ranks import run_ranks

CUTS = {
    "one": [24],
    "two": [12, 12],
    "two ragged": [7, 17],
    "four": [6, 6, 6, 6],
    "four ragged": [1, 9, 2, 12],
}
"""How a batch of 24 is cut into ranks."""

PROBLEMS = {
    "two tasks": Problem(num_tasks=2),
    "five tasks": Problem(num_tasks=5),
    "labels missing": Problem(num_tasks=3, missing=0.5),
    "no labels of a task on one rank, or on any": Problem(num_tasks=3, blind=(1,)),
    "float32": Problem(num_tasks=3, dtype=torch.float32),
    "float32, labels missing": Problem(num_tasks=3, missing=0.5, dtype=torch.float32),
}


def train_in_one_backward(rank: int, problem: Problem, cut: list[int]) -> tuple[Tensor, Tensor]:
    """What a user's own loop does: this rank's slice, one forward, one backward through DDP."""
    network = problem.model()
    model: nn.Module = network
    if len(cut) > 1:
        # Small buckets, so that the wrapper's collectives and the exchange do interleave.
        model = nn.parallel.DistributedDataParallel(network, bucket_cap_mb=0.001)
    optimizer = problem.optimizer(model)
    balancer = Balancer(tasks=problem.num_tasks)
    mine = slice(sum(cut[:rank]), sum(cut[: rank + 1]))
    alphas = []
    for step in range(problem.steps):
        x_BCHW, labels_TB = problem.data(step)
        outputs = model(x_BCHW[mine], balancer=balancer)
        sums, counts = zip(
            *(task.loss(outputs[t], labels_TB[t, mine]) for t, task in enumerate(problem.tasks)), strict=True
        )
        balancer.total(sums=sums, counts=counts).backward()
        alphas.append(balancer.alpha)
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(alphas), nn.utils.parameters_to_vector(network.parameters()).detach()


@pytest.fixture(scope="module")
def by_definition() -> dict[str, tuple[Tensor, Tensor]]:
    return {name: train_by_definition(problem) for name, problem in PROBLEMS.items()}


def train_all(rank: int, cut: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: train_in_one_backward(rank, problem, cut) for name, problem in PROBLEMS.items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_problems_train_so_that_equality_means_something(
    name: str, by_definition: dict[str, tuple[Tensor, Tensor]]
) -> None:
    start = nn.utils.parameters_to_vector(PROBLEMS[name].model().parameters())
    alphas, end = by_definition[name]
    assert (end - start).norm() > 0.1
    assert alphas.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_one_backward_on_any_cut_equals_the_definition_on_one_process(
    cut: list[int], by_definition: dict[str, tuple[Tensor, Tensor]]
) -> None:
    for rank, found in enumerate(run_ranks(len(cut), train_all, cut)):
        for name, (alphas, parameters) in found.items():
            expected_alphas, expected_parameters = by_definition[name]
            alpha_error = float((alphas - expected_alphas).abs().max())
            parameter_error = float((parameters - expected_parameters).norm() / expected_parameters.norm())
            exact = PROBLEMS[name].dtype == torch.float64
            assert alpha_error <= (1e-12 if exact else 1e-6), (name, rank, alpha_error)
            assert parameter_error <= (1e-12 if exact else 1e-5), (name, rank, parameter_error)
