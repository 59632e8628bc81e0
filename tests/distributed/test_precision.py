"""torch.compile on real processes, under DDP with activation checkpointing, and under FSDP2: still the gradients of the
whole batch."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import task_losses
from models.blocks import blocks
from paretrain import Balancer
from tests.support.losses import by_name
from tests.support.problem import Problem, two_pass_step
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import CASES, CLIP_NORM, Found, assert_equal, by_definition, train, whole
from trainer.runtime.engines.strategies import build_engine
from trainer.training.network.compiling import compile_network

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


IN_BLOCKS = CASES["LeNet, separate heads, SGD"]
STEPS = range(6, 9)
"""The second one is a window of micro-batches, and is skipped."""


def in_compiled_blocks(rank: int, shard_processes: int | None) -> tuple[Found, list[bool]]:
    """What FSDP2 finds with compiled parts, and whether each block of the encoder is one."""
    # The graphs that a compiler gets, run as they are: making code of them takes minutes.
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend="aot_eager")  # type: ignore[assignment]
    runtime = a_runtime(rank, 2)
    network = IN_BLOCKS.trained_model()
    compile_network(network, by_blocks=True)
    compiled = [part._compiled_call_impl is not None for part in (*blocks(network.encoder), network.heads)]
    engine = build_engine("fsdp2", network, IN_BLOCKS.optimizer, runtime, CLIP_NORM, shard_processes=shard_processes)
    return (torch.stack(train(engine, IN_BLOCKS, STEPS, runtime)), whole(engine.model_pieces(), runtime)), compiled


@pytest.mark.slow
@pytest.mark.parametrize("shard_processes", [None, 1])
def test_compiled_blocks_in_shards_equal_the_definition_on_one_process(shard_processes: int | None) -> None:
    expected = by_definition(IN_BLOCKS, STEPS)
    for found, compiled in run_ranks(2, in_compiled_blocks, shard_processes, limit_seconds=280):
        assert_equal(found, expected, "compiled")
        assert compiled == [True] * len(compiled)
        assert len(compiled) > 2
