"""Small data and small runs through the real command."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainer.data.sources.digits import write_digits

ROOT = Path(__file__).parents[2]

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 400 train and 90 test samples; 90 cannot be divided by any batch used here."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train_samples=400, test_samples=90)
    return folder


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> Path:
    """A configuration of a short run into this test's own folder; dropout is on, so that random numbers matter."""
    values = {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "data": {"path": str(digits)},
        "model": {
            "encoder": {"name": "lenet", "options": {"dropout": 0.25}},
            "head": {"name": "mlp", "options": {"dropout": 0.25}},
        },
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "train": {"steps": 6, "global_batch": 40, "log_every_steps": 1, "eval_every_steps": 3},
        "checkpoint": {"every_steps": 3},
        "wandb": {"mode": "off"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where `config` trains to."""
    return tmp_path / "runs" / "run"


def command_line(*arguments: object) -> list[str]:
    """`paretrain ...` of the Python that runs the tests."""
    return [sys.executable, "-m", "trainer", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, as a user's shell has it: without a launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU")
    return {key: value for key, value in os.environ.items() if key not in launcher} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def paretrain() -> Command:
    """Run the real command in a process of its own, with a hard time limit."""

    def run(*arguments: object, limit_seconds: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command_line(*arguments),
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=limit_seconds,
            **options,
        )

    return run
