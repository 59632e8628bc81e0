"""Two virtual hosts, a Slurm on them, and a run that takes its time. All of it lives in cluster/box.sh."""

import os
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save

from tests.support.command import ROOT, command_line, environment
from tests.support.runs import saved
from trainer.data.sources.digits import write_digits
from trainer.observe.metrics import read_metrics

BOX = Path(os.environ["BOX"])
STEPS = 40
TIMEOUT_SECONDS = 10


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 slow steps with dropout, on two processes, that saves at its end and when it is asked to."""
    folder = tmp_path_factory.mktemp("cluster")
    write_digits(folder / "digits", train_samples=400, test_samples=90)
    values = {
        "name": "run",
        "output": str(folder / "runs"),
        "data": {"path": str(folder / "digits")},
        "model": {
            "encoder": {"name": "tests.support.slow.SlowLeNet", "options": {"dropout": 0.25}},
            "head": {"name": "mlp", "options": {"dropout": 0.25}},
        },
        "optimizer": {"name": "adamw", "learning_rate": 0.003},
        "train": {"steps": STEPS, "global_batch": 40, "log_every_steps": 1, "eval_every_steps": STEPS},
        "checkpoint": {"every_steps": STEPS},
        "parallel": {"processes": 2, "timeout_seconds": 60, "step_timeout_seconds": TIMEOUT_SECONDS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def expected(config: Path) -> Callable[..., bytes]:
    """The parameters after so many steps of the run, on one machine, undisturbed and without the pauses."""

    @cache
    def parameters_after(steps: int, *overrides: str) -> bytes:
        name = f"expected-{steps}{'-changed' if overrides else ''}"
        length = (f"train.steps={steps}", f"train.eval_every_steps={steps}", f"checkpoint.every_steps={steps}")
        command = command_line("train", config, f"name={name}", "model.encoder.name=lenet", *length, *overrides)
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=120)
        return parameters(config.parent / "runs" / name)

    return parameters_after


def parameters(run_dir: Path) -> bytes:
    """The last checkpoint's parameters."""
    checkpoints = run_dir / "checkpoints"
    return save(saved(checkpoints / (checkpoints / "LATEST").read_text(), "model"))


def steps(run_dir: Path) -> list[int]:
    """The steps whose losses the run has logged."""
    path = run_dir / "metrics.jsonl"
    return [record["step"] for record in read_metrics(path) if record["kind"] == "train"] if path.exists() else []


def wait_until(happened: Callable[[], object], limit_seconds: float, what: str, story: Callable[[], str] = str) -> None:
    """Look again and again; if in vain, tell `what` was waited for, and the `story` so far."""
    deadline = time.monotonic() + limit_seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {limit_seconds} s: {what}\n{story()}"
        time.sleep(0.1)
