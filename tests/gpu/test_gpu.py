"""`make test-gpu`: the promises on the GPUs of one machine, over NCCL, against one CPU process by the definition.

A test that needs more GPUs than there are is skipped, and says so.
"""

from pathlib import Path

import pytest
import torch

from tests.gpu.on_device import alphas_and_parameters, memory, on_ranks, saved_and_read, second_alpha, with_delays
from tests.gpu.promises import assert_near, assert_second_alpha, assert_stopped_rank_is_named
from tests.support.command import Command
from tests.support.strategies import Found


def needs_gpus(number: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    if torch.cuda.device_count() < number:
        pytest.skip(f"needs {number} GPUs, found {torch.cuda.device_count()}")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("processes", "strategies"),
    [
        (1, ["single", "fsdp2", "zero1", "zero3"]),
        (2, ["ddp", "fsdp2", "hsdp", "zero1", "zero3"]),
        (4, ["ddp", "fsdp2", "hsdp", "zero3"]),
    ],
)
def test_every_strategy_equals_the_definition(processes: int, strategies: list[str], oracle: Found) -> None:
    needs_gpus(processes)
    first, *others = on_ranks(processes, alphas_and_parameters, "cuda", strategies, processes)
    for strategy, found in first.items():
        assert_near(found, oracle, strategy)
        assert all(torch.equal(other[strategy][0], found[0]) for other in others), strategy


@pytest.mark.gpu
@pytest.mark.parametrize(("processes", "strategies"), [(1, ["single", "fsdp2"]), (2, ["ddp", "fsdp2", "zero3"])])
def test_a_checkpoint_holds_what_the_gpus_hold(processes: int, strategies: list[str], tmp_path: Path) -> None:
    needs_gpus(processes)
    assert on_ranks(processes, saved_and_read, "cuda", strategies, processes, tmp_path) == [[]] * processes


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_leaves_the_weights_within_what_it_rounds(precision: str) -> None:
    needs_gpus(1)
    assert_second_alpha(on_ranks(1, second_alpha, "cuda", precision, "plain")[0], 0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["compiled", "checkpointed"])
def test_compilation_and_activation_checkpointing_leave_the_weights(how: str) -> None:
    needs_gpus(1)
    assert_second_alpha(on_ranks(1, second_alpha, "cuda", "fp32", how)[0], 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_late_ranks_find_the_same_weights(strategy: str) -> None:
    """The exchange and the gradients' collectives keep their order."""
    needs_gpus(2)
    first, second = on_ranks(2, with_delays, "cuda", strategy, 2, 1000)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.gpu
def test_a_step_takes_the_memory_that_check_says(digits: Path, tmp_path: Path) -> None:
    needs_gpus(1)
    ((estimated, taken),) = on_ranks(1, memory, "cuda", digits, tmp_path)
    assert taken == pytest.approx(estimated, rel=0.15)


@pytest.mark.gpu
def test_a_run_ends_when_a_rank_stops(paretrain: Command, config: Path) -> None:
    """The alarm thread ends the rank that waits inside CUDA."""
    needs_gpus(2)
    assert_stopped_rank_is_named(paretrain, config, "cuda")
