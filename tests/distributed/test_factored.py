"""Stacked heads on real processes: the gradients of the whole batch, however it is cut."""

from typing import Any

import torch
from torch import Tensor, nn

from models import MultiTaskModel, task_losses
from models.heads.task_heads import StackedHeads
from paretrain import BalanceError, Balancer
from tests.support.losses import by_name
from tests.support.problem import Problem, two_pass_step
from tests.support.ranks import run_ranks

PROBLEM = Problem(num_tasks=5, missing=0.3, blind=(1,))
CUT = [7, 17]
NUM_STEPS = 3


def stacked_model() -> MultiTaskModel:
    separate = PROBLEM.model()
    return MultiTaskModel(separate.encoder, StackedHeads(list(separate.heads)))


def gradients_under_ddp(rank: int) -> list[tuple[Tensor, list[Tensor]]]:
    """α and all gradients of some steps on data of their own."""
    model = nn.parallel.DistributedDataParallel(stacked_model(), bucket_cap_mb=0.001)
    balancer = Balancer(PROBLEM.num_tasks)
    mine = slice(sum(CUT[:rank]), sum(CUT[: rank + 1]))
    found = []
    for step in range(NUM_STEPS):
        x_BCHW, labels_TB = PROBLEM.data(step)
        targets = {task.name: labels_TB[t, mine] for t, task in enumerate(PROBLEM.tasks)}
        balancer.total(
            **by_name(task_losses(PROBLEM.tasks, model(x_BCHW[mine], balancer=balancer), targets))
        ).backward()
        found.append((balancer.alpha, [parameter.grad.clone() for parameter in model.parameters()]))
        model.zero_grad()
    return found


def test_ragged_ranks_equal_the_definition_on_one_process() -> None:
    found = run_ranks(2, gradients_under_ddp)
    for step in range(NUM_STEPS):
        model = PROBLEM.model()
        alpha_T = two_pass_step(model, *PROBLEM.data(step))
        expected = [parameter.grad for parameter in model.encoder.parameters()]
        by_layer = zip(*(head.parameters() for head in model.heads), strict=True)
        expected += [torch.stack([parameter.grad for parameter in same]) for same in by_layer]
        for of_rank in found:
            torch.testing.assert_close(of_rank[step][0], alpha_T, rtol=0, atol=1e-12)
            for gradient, reference in zip(of_rank[step][1], expected, strict=True):
                torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-14)


def nan_on_rank_1(rank: int) -> Any:
    x_BCHW, labels_TB = PROBLEM.data(0)
    balancer = Balancer(["a", "b", "c", "d", "e"])
    outputs_BTC = stacked_model()(x_BCHW, balancer)
    targets = {task.name: labels_TB[t] for t, task in enumerate(PROBLEM.tasks)}
    sums_T, counts_T = task_losses(PROBLEM.tasks, outputs_BTC, targets)
    faulty_T = torch.ones_like(sums_T)
    faulty_T[2] = float("nan") if rank == 1 else 1.0
    try:
        balancer.total(sums=sums_T * faulty_T, counts=counts_T).backward()
    except BalanceError as error:
        return str(error)
    return "no error"


def test_a_nan_on_one_rank_is_named_on_every_rank() -> None:
    words = "not finite: loss and gradient of task 'c' on rank 1"
    assert run_ranks(2, nan_on_rank_1, limit_seconds=30) == [words, words]
