"""The average of the parameters, under every strategy: that of one process by hand; evaluations use it and leave no
trace; it is saved, resumed and moved with the rest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.averaging import CASE, DECAY, PLAIN, everything, overflow, predicted
from tests.support.problem import two_pass_step
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import CLIP_NORM, SKIPPED, Case, new_engine, stack, train, write
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.errors import LostPeerError, UserError
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.engines.averaging import averaged, averaged_weights, has_averages, swap
from trainer.training.optimizer.build import build_optimizer
from trainer.training.optimizer.settings import Setting

STEPS_EACH = 3
CHAIN = ["ddp", "fsdp2", "zero3", "zero1", "zero2"]
"""The skipped step comes in the third part."""


def by_hand(case: Case, num_steps: int) -> dict[str, Tensor]:
    """The average after some steps of one process on the whole batch, in float64."""
    model = case.model()
    optimizer = case.optimizer(list(model.parameters()))
    seen = []
    for step in range(num_steps):
        two_pass_step(model, *case.batch(step))
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        if step != SKIPPED:
            optimizer.step()
            seen.append({name: tensor.double() for name, tensor in stack(model).state_dict().items()})
        optimizer.zero_grad()
    weights = [DECAY ** (len(seen) - 1), *((1 - DECAY) * DECAY**age for age in range(len(seen) - 2, -1, -1))]
    assert sum(weights) == pytest.approx(1)
    return {
        name: sum(weight * state[name] for weight, state in zip(weights, seen, strict=True)).float()  # type: ignore[union-attr]
        for name in seen[0]
    }


def moved(rank: int, world_size: int, folder: Path) -> list[dict[str, Any]]:
    """A run that moves along `CHAIN`; what it looked like under each strategy."""
    runtime = a_runtime(rank, world_size)
    checkpoint, found = None, []
    for place, strategy in enumerate(CHAIN):
        engine = new_engine(strategy, CASE, runtime, checkpoint)
        with engine.averaged():
            at_start = predicted(engine.predictor)
        train(engine, CASE, range(place * STEPS_EACH, (place + 1) * STEPS_EACH), runtime)
        before, whole = predicted(engine.predictor), everything(engine)
        with engine.averaged():
            during = predicted(engine.predictor)
        after, changes = predicted(engine.predictor), changed(whole, everything(engine))
        stepped = overflow(engine, runtime)
        changes += changed(whole, everything(engine))
        checkpoint = write(engine, folder / strategy, runtime)
        found.append(
            {
                "at start": at_start,
                "during": during,
                "no trace": torch.equal(before, after) and not torch.equal(before, during),
                "changed": changes,
                "overflow stepped": stepped,
                "average": averaged_weights({}, load(checkpoint, runtime).optimizer),
            }
        )
    return found


def changed(some: dict[str, Tensor], others: dict[str, Tensor]) -> list[str]:
    assert some.keys() == others.keys()
    return [name for name, tensor in some.items() if not torch.equal(tensor, others[name])]


def test_every_strategy_keeps_the_average_by_hand_and_evaluations_use_it_without_a_trace(tmp_path: Path) -> None:
    expected = [by_hand(PLAIN, (place + 1) * STEPS_EACH) for place in range(len(CHAIN))]
    network = CASE.trained_model()
    last = predicted(network)
    for rank, found in enumerate(run_ranks(2, moved, 2, tmp_path, limit_seconds=240)):
        assert_follows(found, expected, network, last, rank)


def assert_follows(
    found: Sequence[dict[str, Any]],
    expected: Sequence[dict[str, Tensor]],
    network: nn.Module,
    at_start: Tensor,
    rank: int,
) -> None:
    for strategy, part, average in zip(CHAIN, found, expected, strict=True):
        what = f"{strategy}, rank {rank}"
        for name, tensor in average.items():
            error = float((part["average"][name] - tensor).norm() / tensor.norm())
            assert error <= 1e-5, (what, name, error)
        network.load_state_dict(average)
        torch.testing.assert_close(part["during"], predicted(network), rtol=1e-4, atol=1e-5, msg=what)
        torch.testing.assert_close(part["at start"], at_start, rtol=1e-4, atol=1e-5, msg=what)
        at_start = part["during"]
        assert part["no trace"], what
        assert part["changed"] == [], what
        assert not part["overflow stepped"], what


def one_parameter() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.zeros(1))
    config = OptimizerConfig(name="sgd", learning_rate=1.0, ema_decay=0.75)
    optimizer = build_optimizer([("w", parameter)], config, {"w": Setting(1.0, 0.0)})
    return parameter, optimizer


def test_the_first_average_is_the_parameter_after_its_first_step() -> None:
    parameter, optimizer = one_parameter()
    assert not has_averages(optimizer.state)
    averages = []
    for _ in range(3):
        parameter.grad = torch.full((1,), -4.0)
        optimizer.step()
        averages.append(optimizer.state[parameter]["ema"].item())
    assert averages == [4.0, 5.0, 6.75]
    parameter.grad = None
    optimizer.step()
    assert optimizer.state[parameter]["ema"].item() == 6.75


def test_an_error_of_all_ranks_brings_the_parameters_back_and_one_of_this_rank_waits_for_nobody() -> None:
    parameter, optimizer = one_parameter()
    for _ in range(2):
        parameter.grad = torch.full((1,), -4.0)
        optimizer.step()
    seen: list[float] = []

    def swap_and_look() -> None:
        swap(parameter, optimizer.state[parameter])
        seen.append(parameter.item())

    for error in (UserError("a sample that cannot be decoded"), LostPeerError("a process is gone")):
        with pytest.raises(type(error)), averaged(optimizer.state, swap_and_look):
            raise error
    assert seen == [5.0, 8.0, 5.0]
