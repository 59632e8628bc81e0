"""Several micro-batches with an α of their own, on one process: their mean, and broken ones."""

from typing import Any

import pytest
import torch

from paretrain import Balancer
from tests.support.problem import MISSING, Problem, two_pass_step
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.train import AccumulationConfig
from trainer.data.reading.batch import Batch
from trainer.runtime.engines.engine import TorchEngine
from trainer.runtime.engines.precision import LossScale
from trainer.training.gradients import forward_backward
from trainer.training.learner import Learner

PROBLEM = Problem(num_tasks=3, missing=0.3, blind=(1,))
NUM_PARTS = 4


def a_learner(on_nonfinite: Any = "stop", alpha: Any = "micro") -> Learner:
    model = PROBLEM.model()
    return Learner(
        network=model,
        engine=TorchEngine(model, model, lambda p: torch.optim.SGD(p, lr=1.0), None, LossScale()),
        tasks=PROBLEM.tasks,
        balancer=Balancer(PROBLEM.num_tasks, on_nonfinite=on_nonfinite),
        balance=BalanceConfig(on_nonfinite=on_nonfinite),
        accumulation=AccumulationConfig(steps=NUM_PARTS, alpha=alpha),
        device=torch.device("cpu"),
    )


def a_batch() -> Batch:
    x_BCHW, labels_TB = PROBLEM.data(0)
    targets = {task.name: labels_B for task, labels_B in zip(PROBLEM.tasks, labels_TB, strict=True)}
    return Batch(x_BCHW, targets, torch.arange(len(x_BCHW)))


@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_micro_is_the_mean_of_the_micro_batches_own_gradients(scale: float) -> None:
    learner, batch = a_learner(), a_batch()
    learner.engine.loss_scale.value = scale
    balance = forward_backward(learner, batch)
    expected = PROBLEM.model()
    alphas, gradients = [], []
    for x_BCHW, labels_TB in zip(
        *(tensor.tensor_split(NUM_PARTS) for tensor in (batch.inputs, stacked(batch))), strict=True
    ):
        alphas.append(two_pass_step(expected, x_BCHW, labels_TB.T))
        gradients.append([parameter.grad.clone() for parameter in expected.parameters()])
        expected.zero_grad()
    torch.testing.assert_close(torch.from_numpy(balance.alpha_T), torch.stack(alphas).mean(dim=0), rtol=0, atol=1e-11)
    for parameter, *parts in zip(learner.network.parameters(), *gradients, strict=True):
        reference = torch.stack(parts).mean(dim=0)
        torch.testing.assert_close(parameter.grad / scale, reference, rtol=1e-9, atol=1e-12)
    labelled_T = (stacked(batch) != MISSING).sum(dim=0)
    assert balance.counts_T.tolist() == labelled_T.tolist()


def stacked(batch: Batch) -> torch.Tensor:
    """Labels (B, T)."""
    return torch.stack(list(batch.targets.values()), dim=1)


@pytest.mark.parametrize("alpha", ["micro", "window"])
@pytest.mark.parametrize("policy", ["skip_step", "drop_task"])
def test_a_broken_micro_batch_skips_the_step_or_drops_its_task(policy: str, alpha: str) -> None:
    learner, batch = a_learner(policy, alpha), a_batch()
    head, calls = learner.network.heads[2], 0

    def nan_at_second_micro_batch(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return output * torch.nan if calls % NUM_PARTS == 2 else output

    head.register_forward_hook(nan_at_second_micro_batch)
    balance = forward_backward(learner, batch)
    assert balance.broken is not None
    assert balance.broken.tasks == [2]
    if policy == "skip_step":
        assert not balance.active_T.any()
    else:
        assert balance.active_T.tolist() == ([True] * 3 if alpha == "micro" else [True, True, False])
        assert all(parameter.grad.isfinite().all() for parameter in learner.network.parameters())
