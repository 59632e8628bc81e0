"""α in the space of the encoder's parameters: under every strategy that of one process in float64, from shards alone.

One start of the ranks does all strategies of a world size: that is what a test costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.problem import MISSING, parameter_space_step
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import (
    CASES,
    CLIP_NORM,
    MICRO_BATCHES,
    WINDOWED,
    Case,
    a_learner,
    my_batch,
    new_engine,
    stack,
    whole,
)
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.train import AccumulationConfig
from trainer.runtime.distributed import Runtime
from trainer.runtime.engines.precision import Precision
from trainer.training.gradients import forward_backward
from trainer.training.parameter_space import parameter_gram

Found = tuple[Tensor, Mapping[str, Tensor]]
"""α of every step, and the parameters at the end."""


def labels(step: int, labels_TB: Tensor, sample_ids_B: Tensor) -> Tensor:
    """The labels of a step; in some steps each sample has that of one task, so each task runs its own samples alone."""
    if step % 4 != 2:
        return labels_TB
    return labels_TB.where(torch.arange(len(labels_TB))[:, None] == sample_ids_B % len(labels_TB), MISSING)


def by_definition(case: Case, num_steps: int) -> Found:
    """Train one process on the whole batch, in float64."""
    model = case.model().double()
    optimizer = case.optimizer(list(model.parameters()))
    alphas = []
    for step in range(num_steps):
        x_BCHW, labels_TB = case.batch(step)
        labels_TB = labels(step, labels_TB, torch.arange(labels_TB.shape[1]))
        alphas.append(parameter_space_step(model, x_BCHW.double(), labels_TB))
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(alphas), (stack(model) if case.stacked else model).state_dict()


def on_a_rank(
    rank: int,
    world_size: int,
    strategies: Sequence[str],
    cases: Sequence[str],
    num_steps: int,
    precision: Precision = "fp32",
) -> dict[tuple[str, str], Found]:
    runtime = a_runtime(rank, world_size)
    found = {}
    for name in cases:
        for strategy in strategies:
            found[name, strategy] = trained(strategy, CASES[name], num_steps, precision, runtime)
    return found


def trained(strategy: str, case: Case, num_steps: int, precision: Precision, runtime: Runtime) -> Found:
    engine = new_engine(strategy, case, runtime, precision=precision)
    learner = replace(a_learner(engine, runtime), balance=BalanceConfig(space="parameters"))
    alphas = []
    for step in range(num_steps):
        parts = AccumulationConfig(steps=1 if step % WINDOWED else MICRO_BATCHES)
        batch = my_batch(case, step, runtime)
        labels_TB = labels(step, torch.stack(list(batch.targets.values())), batch.sample_ids_B)
        batch = replace(batch, targets=dict(zip(batch.targets, labels_TB, strict=True)))
        watched = step == 3 and precision == "fp32"
        gram_TT = parameter_gram(replace(learner, accumulation=parts), batch).numpy() if watched else None
        balance = forward_backward(replace(learner, accumulation=parts), batch)
        # What the monitor sees is what α is found from.
        if gram_TT is not None and balance.gram_TT is not None:
            np.testing.assert_allclose(gram_TT, balance.gram_TT, rtol=1e-5, atol=1e-9)
        alphas.append(learner.balancer.alpha)
        engine.step()
    return torch.stack(alphas), whole(engine.model_pieces(), runtime)


ALL = ["ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3"]


@pytest.mark.parametrize(
    ("world_size", "strategies", "cases", "num_steps"),
    [
        (2, ["ddp", "fsdp2", "zero2", "zero3"], list(CASES)[:1], 8),
        pytest.param(1, ["single", "fsdp2", *ALL[3:]], list(CASES), 20, marks=pytest.mark.slow),
        pytest.param(2, ALL, list(CASES), 20, marks=pytest.mark.slow),
        pytest.param(4, ALL, list(CASES), 20, marks=pytest.mark.slow),
    ],
)
def test_every_strategy_equals_one_process_in_float64(
    world_size: int, strategies: list[str], cases: list[str], num_steps: int
) -> None:
    of_ranks = run_ranks(world_size, on_a_rank, world_size, strategies, cases, num_steps, limit_seconds=240)
    oracles = {name: by_definition(CASES[name], num_steps) for name in cases}
    for key, (alphas, model) in of_ranks[0].items():
        expected_alphas, expected_model = oracles[key[0]]
        for other in of_ranks[1:]:
            assert torch.equal(other[key][0], alphas), key
        error = float((alphas - expected_alphas).abs().max())
        assert error <= 1e-6, (key, error)
        for name, tensor in expected_model.items():
            assert float((model[name] - tensor).norm() / tensor.norm()) <= 1e-5, (key, name)


@pytest.mark.slow
def test_in_bf16_every_rank_has_the_alpha_of_float64_within_its_rounding() -> None:
    name, num_steps = "LeNet, separate heads, SGD", 8
    of_ranks = run_ranks(2, on_a_rank, 2, ["ddp", "fsdp2"], [name], num_steps, "bf16", limit_seconds=120)
    expected_alphas, expected_model = by_definition(CASES[name], num_steps)
    initial = CASES[name].model().state_dict()
    # Eight significant bits: each gradient is within half a percent or so, and α within several.
    for key, (alphas, model) in of_ranks[0].items():
        assert torch.equal(of_ranks[1][key][0], alphas), key
        assert float((alphas - expected_alphas).abs().max()) <= 5 * torch.finfo(torch.bfloat16).eps, key
        assert all(tensor.dtype == torch.float32 for tensor in model.values())
        error = sum(float((model[parameter] - tensor).square().sum()) for parameter, tensor in expected_model.items())
        length = sum(
            float((tensor - initial[parameter]).square().sum()) for parameter, tensor in expected_model.items()
        )
        assert (error / length) ** 0.5 <= 0.1, key  # Of the way; 0.07 was seen.
