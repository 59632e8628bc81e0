"""The promise, under every strategy: α and parameters are those of one process with the whole batch, in one piece or in
micro-batches, and in lower precision within what it rounds; and a run may move from one strategy to another.

One start of the ranks does all cases of a world size: that is what a test costs.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import Classification
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import (
    CASES,
    LABELLED,
    Found,
    a_learner,
    assert_equal,
    by_definition,
    my_batch,
    new_engine,
    train,
    whole,
    write,
)
from trainer.config.sections.train import AccumulationConfig
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.engines.precision import LossScale
from trainer.training.gradients import forward_backward

NUM_STEPS = 20


def on_a_rank(rank: int, world_size: int, strategies: Sequence[str]) -> dict[tuple[str, str], Found]:
    """Every case under every strategy."""
    runtime = a_runtime(rank, world_size)
    found = {}
    for name, case in CASES.items():
        for strategy in strategies:
            engine = new_engine(strategy, case, runtime)
            alphas = train(engine, case, range(NUM_STEPS), runtime)
            found[name, strategy] = torch.stack(alphas), whole(engine.model_pieces(), runtime)
    return found


@pytest.fixture(scope="module")
def oracle() -> dict[str, Found]:
    return {name: by_definition(case, range(NUM_STEPS)) for name, case in CASES.items()}


@pytest.mark.parametrize(
    ("world_size", "strategies"),
    [
        (1, ["single", "fsdp2"]),
        pytest.param(1, ["zero1", "zero2", "zero3"], marks=pytest.mark.slow),
        (2, ["ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3"]),
        pytest.param(4, ["ddp", "fsdp2", "hsdp", "zero3"], marks=pytest.mark.slow),
    ],
)
def test_every_strategy_equals_the_definition_on_one_process(
    world_size: int, strategies: list[str], oracle: dict[str, Found]
) -> None:
    of_ranks = run_ranks(world_size, on_a_rank, world_size, strategies, limit_seconds=240)
    for key, found in of_ranks[0].items():
        assert_equal(found, oracle[key[0]], (*key, world_size))
        for other in of_ranks[1:]:
            assert torch.equal(other[key][0], found[0]), key


def moved(rank: int, world_size: int, chain: Sequence[str], folder: Path) -> dict[str, Any]:
    """A run that moves along `chain`; and, for each strategy in it, whether a resume under it is bit for bit."""
    runtime = a_runtime(rank, world_size)
    case = CASES["ResNet, stacked heads, AdamW"]
    checkpoint, alphas, exact = None, [], {}
    length = NUM_STEPS // len(chain)
    for place, strategy in enumerate(chain):
        engine = new_engine(strategy, case, runtime, checkpoint)
        alphas += train(engine, case, range(place * length, (place + 1) * length), runtime)
        checkpoint = write(engine, folder / strategy, runtime)
        again = new_engine(strategy, case, runtime, checkpoint)
        ends: list[dict[Any, Tensor]] = []
        for one in (engine, again):
            train(one, case, range(3), runtime)
            ends.append(whole(itertools.chain(one.model_pieces(), one.optimizer_pieces()), runtime))
        first, resumed = ends
        exact[strategy] = all(torch.equal(value, resumed[name]) for name, value in first.items())
    return {"found": (torch.stack(alphas), dict(load(checkpoint, runtime).model)), "exact": exact}


def test_a_run_moves_between_strategies_and_resumes_bit_for_bit(tmp_path: Path, oracle: dict[str, Found]) -> None:
    chain = ["ddp", "fsdp2", "zero3", "zero1", "zero2"]
    first, _ = run_ranks(2, moved, 2, chain, tmp_path, limit_seconds=240)
    assert_equal(first["found"], oracle["ResNet, stacked heads, AdamW"], "moved")
    assert first["exact"] == dict.fromkeys(chain, True)


@dataclass(frozen=True)
class Loud:
    """A task whose loss has, on one rank at one step, a gradient that float16 has no room for."""

    task: Classification
    factor: float

    @property
    def name(self) -> str:
        return self.task.name

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = self.task.loss(output, target)
        return sums + self.factor * (output - output.detach()).float().sum(), counts


FP16_STEPS = [(1, False), (1, True), (2, True), (2, False)]
"""Micro-batches of each step, and whether it overflows on rank 1."""


def in_lower_precision(rank: int, strategies: Sequence[str]) -> dict[tuple[str, str], Any]:
    """Two steps in bf16; and some in fp16, of which some overflow on rank 1, in one piece and in micro-batches."""
    runtime = a_runtime(rank, 2)
    case = CASES["LeNet, separate heads, SGD"]
    found: dict[tuple[str, str], Any] = {}
    for strategy in strategies:
        engine = new_engine(strategy, case, runtime, precision="bf16")
        found["bf16", strategy] = torch.stack(train(engine, case, range(2), runtime))
        engine = new_engine(strategy, case, runtime, precision="fp16")
        engine.loss_scale.value = 2.0**12
        learner = a_learner(engine, runtime)
        told = []
        for step, (micro_batches, overflows) in enumerate(FP16_STEPS):
            factor = 1e5 if overflows and rank == 1 else 0.0
            loud: list[Any] = [Loud(task, factor) for task in LABELLED.tasks]
            one = replace(learner, accumulation=AccumulationConfig(steps=micro_batches), tasks=loud)
            balance = forward_backward(one, my_batch(case, step, runtime))
            norm = float(engine.step())
            told.append((balance.overflow, engine.loss_scale.value, norm, balance.min_norm))
        found["fp16", strategy] = told, whole(engine.model_pieces(), runtime)
    return found


def test_lower_precision_leaves_the_weights_and_an_overflow_on_one_rank_skips_the_step_on_all(
    oracle: dict[str, Found],
) -> None:
    strategies = ["ddp", "fsdp2", "zero1", "zero3"]
    first, second = run_ranks(2, in_lower_precision, strategies, limit_seconds=240)
    expected = oracle["LeNet, separate heads, SGD"][0][:2]
    reference, expected_model = first["fp16", "ddp"]
    for strategy in strategies:
        assert float((first["bf16", strategy] - expected).abs().max()) <= 0.02, strategy
        told, model = first["fp16", strategy]
        assert [step[0] for step in told] == [False, True, True, False], strategy
        assert [step[1] for step in told] == [2.0**12, 2.0**11, 2.0**10, 2.0**10], strategy
        assert [math.isfinite(step[2]) for step in told] == [True, False, False, True], strategy
        assert [step[:2] for step in second["fp16", strategy][0]] == [step[:2] for step in told], strategy
        # Norms are told unscaled, whatever the scale and the cut; two steps have moved the model, the others have not.
        for number in (0, 3):
            assert told[number][2:] == pytest.approx(reference[number][2:], rel=0.02), strategy
        for name, tensor in expected_model.items():
            assert float((model[name] - tensor).abs().max()) <= 1e-3, (strategy, name)


def test_the_loss_scale_halves_grows_stays_above_one_and_goes_on_from_its_state() -> None:
    scale = LossScale("fp16")
    for _ in range(scale.GROWS_AFTER_STEPS - 1):
        scale.update(overflow=False)
    resumed = LossScale("fp16")
    resumed.load_state_dict(scale.state_dict())
    resumed.update(overflow=False)
    assert (scale.value, resumed.value) == (2.0**16, 2.0**17)
    for _ in range(20):
        resumed.update(overflow=True)
    assert resumed.value == 1.0
    single = LossScale("fp32")
    single.load_state_dict(scale.state_dict())
    single.update(overflow=True)
    assert (single.value, single.state_dict()) == (1.0, {})
