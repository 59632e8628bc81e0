"""The functions that `make test-gpu` runs on GPUs, on CPUs: they are known to work where there is a GPU at last."""

from pathlib import Path

import pytest
import torch

from tests.gpu.on_device import alphas_and_parameters, memory, on_ranks, saved_and_read, second_alpha, with_delays
from tests.gpu.promises import assert_near, assert_second_alpha, assert_stopped_rank_is_named
from tests.support.command import Command
from tests.support.strategies import Found

pytestmark = pytest.mark.slow


def test_strategies(oracle: Found) -> None:
    first, _ = on_ranks(2, alphas_and_parameters, "cpu", ["ddp", "fsdp2", "hsdp"], 2)
    for strategy, found in first.items():
        assert_near(found, oracle, strategy)


def test_checkpoints(tmp_path: Path) -> None:
    assert on_ranks(2, saved_and_read, "cpu", ["ddp", "fsdp2"], 2, tmp_path) == [[], []]


@pytest.mark.parametrize(("precision", "how"), [("bf16", "plain"), ("fp32", "checkpointed"), ("fp32", "compiled")])
def test_one_process(precision: str, how: str) -> None:
    assert_second_alpha(on_ranks(1, second_alpha, "cpu", precision, how)[0], 0.05)


def test_late_ranks() -> None:
    one, other = on_ranks(2, with_delays, "cpu", "ddp", 2, 3)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_memory(digits: Path, tmp_path: Path) -> None:
    ((estimated, taken),) = on_ranks(1, memory, "cpu", digits, tmp_path)
    assert (estimated > 4 * 4 * 11_000_000, taken) == (True, 0)


def test_a_stopped_rank(paretrain: Command, config: Path) -> None:
    assert_stopped_rank_is_named(paretrain, config, "cpu")
