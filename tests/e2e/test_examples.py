"""The examples run as their headers say, and every wrapper finds the same α."""

import os
import subprocess
import sys

import pytest

from tests.support.command import ROOT, environment

PYTHON = sys.executable
CONFIG_FILE = "launch/accelerate/processes.yaml"
LAUNCH = [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", CONFIG_FILE]
COMMANDS = {
    "one process": [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", "1", "examples/ddp.py"],
    "ddp": [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", "2", "examples/ddp.py"],
    "accelerate": [*LAUNCH, "--num_processes", "2", "examples/with_accelerate.py"],
    "fabric": [PYTHON, "examples/with_fabric.py"],
}


def alpha_of(command: list[str]) -> list[float]:
    environ = environment() | {"PYTHONPATH": str(ROOT), "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("alpha ")]
    assert len(lines) == 1, done.stdout
    return [float(word) for word in lines[0].split()[1:]]


@pytest.mark.slow
def test_every_wrapper_finds_the_alpha_of_one_process() -> None:
    found = {name: alpha_of(command) for name, command in COMMANDS.items()}
    for name, alpha in found.items():
        assert alpha == pytest.approx(found["one process"], abs=2e-5), name
    assert sum(found["ddp"]) == pytest.approx(1, abs=1e-5)
    assert max(found["ddp"]) - min(found["ddp"]) > 0.01, "equal weights would prove nothing"


def test_a_foreign_encoder_with_gradient_checkpointing() -> None:
    alpha = alpha_of([PYTHON, "examples/foreign_encoder.py"])
    assert sum(alpha) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_adapters_under_hugging_face_trainer() -> None:
    assert sum(alpha_of([PYTHON, "examples/lora.py"])) == pytest.approx(1, abs=1e-5)


def test_the_library_costs_only_torch() -> None:
    program = """
import sys, numpy, scipy.linalg, torch
before = set(sys.modules)
from paretrain import Balancer
Balancer(tasks=2)
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(packages - set(sys.stdlib_module_names) - {"numpy", "scipy", "torch", "paretrain"}))
"""
    done = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
