"""Small data and small runs for all tests, and the mark of those that start processes: `make quick` leaves them out."""

import platform
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from hypothesis import settings

from tests.support.command import Command, run_command

settings.register_profile("any machine", deadline=None)  # No test fails because the machine is busy.
settings.load_profile("any machine")
platform.processor()  # It starts `uname` once, in whichever test a library asks first.
PROCESSES = tuple(Path(__file__).parent / name for name in ("distributed", "e2e", "launch", "gpu"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in PROCESSES):
            item.add_marker("processes")


@pytest.fixture(autouse=True)
def _starts_no_process_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("processes"):
        yield
        return
    before = _started()
    yield
    assert _started() == before, "it started a process: mark it with @pytest.mark.processes"


def _started() -> tuple[int, set[int]]:
    """Return what changes whenever a process of ours ends, and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    return ended, {child.pid for child in psutil.Process().children()}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 400 train and 90 test samples; 90 cannot be divided by any batch used here."""
    from trainer.data.sources.digits import write_digits  # most tests need neither it nor the engine

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
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where `config` trains to."""
    return tmp_path / "runs" / "run"


@pytest.fixture
def paretrain() -> Command:
    """Run the real command in a process of its own, with a hard time limit."""
    return run_command
