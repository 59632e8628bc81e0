"""torch.compile and activation checkpointing under DDP on real processes: still the gradients of the whole batch."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import task_losses
from paretrain import Balancer
from tests.support.losses import by_name
from tests.support.problem import Problem, two_pass_step
from tests.support.ranks import run_ranks

PROBLEM = Problem(num_tasks=4, missing=0.3)
CUT = [7, 17]
NUM_STEPS = 2


class Checkpointed(nn.Module):
    """Forgets its activations and computes them again in the backward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """What the module gives."""
        return checkpoint(self.module, x_BCHW, use_reentrant=False)


def gradients(rank: int) -> list[tuple[Tensor, list[Tensor]]]:
    """α and all gradients of some steps on data of their own."""
    network = PROBLEM.model()
    network.encoder.compile(backend="aot_eager")
    network.encoder = Checkpointed(network.encoder)
    # Buckets of the default size: torch.compile refuses smaller ones than 1 MiB.
    model = nn.parallel.DistributedDataParallel(network)
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


def test_compiled_and_checkpointed_ranks_equal_the_definition_on_one_process() -> None:
    of_ranks = run_ranks(2, gradients)
    for step in range(NUM_STEPS):
        model = PROBLEM.model()
        alpha_T = two_pass_step(model, *PROBLEM.data(step))
        for found in of_ranks:
            torch.testing.assert_close(found[step][0], alpha_T, rtol=0, atol=1e-11)
            for gradient, parameter in zip(found[step][1], model.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-11, atol=1e-13)
