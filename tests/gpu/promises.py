"""What the tests on GPUs, and those of their functions on CPUs, hold a machine to."""

from pathlib import Path

import torch

from tests.gpu.on_device import CASE
from tests.support.command import Command
from tests.support.strategies import Found, by_definition


def assert_near(found: Found, oracle: Found, what: str) -> None:
    """GPUs add up in another order than CPUs, and their convolutions may use TF32."""
    assert float((found[0][0] - oracle[0][0]).abs().max()) <= 5e-3, what
    assert float((found[0] - oracle[0]).abs().max()) <= 0.05, what
    for name, tensor in oracle[1].items():
        assert float((found[1][name] - tensor).norm()) <= 0.02 * float(tensor.norm()) + 1e-3, (what, name)


def assert_second_alpha(alpha_T: torch.Tensor, tolerance: float) -> None:
    assert float((alpha_T - by_definition(CASE, [1])[0][0]).abs().max()) <= tolerance


def assert_stopped_rank_is_named(paretrain: Command, config: Path, device: str) -> None:
    stops = ["model.encoder.name=tests.support.breaking.Breaking", "model.encoder.options={where: backward, how: stop}"]
    limits = [f"parallel.device={device}", "parallel.step_timeout_seconds=10", "parallel.timeout_seconds=60"]
    done = paretrain("train", config, "--processes", 2, *stops, *limits)
    assert (done.returncode, "rank 1" in done.stderr) == (3, True), done.stderr
