"""The run's folder: what belongs in it, and whether this configuration may go on from what is there."""

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from trainer.config import Experiment
from trainer.config_file import parse_config, to_yaml
from trainer.errors import UserError
from trainer.files import replace, write_durably
from trainer.resumable import differences
from trainer.runtime.checkpoints.checkpoint import folder_of_step, latest
from trainer.yaml_file import read_yaml

CONFIG = "config.yaml"
RUN = "run.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
SUMMARY = "summary.json"
REPORT = "report.html"
PREDICTIONS = "predictions.npz"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
PACKAGES = ("paretrain", "torch", "accelerate", "deepspeed", "numpy", "scipy", "webdataset", "opencv-python-headless")


def find_checkpoint(experiment: Experiment) -> Path | None:
    """The checkpoint that the run goes on from; None for a new run. Writes nothing.

    Raises:
        UserError: the run's folder belongs to another configuration.
    """
    run_dir = experiment.run_dir
    if (run_dir / CONFIG).exists():
        _refuse_another_config(experiment, run_dir)
    return latest(run_dir / CHECKPOINTS)


@contextmanager
def claimed(experiment: Experiment, checkpoint: Path | None) -> Iterator[None]:
    """Make the run's folder this configuration's, and hold it for as long as this process lives, however it ends.

    Args:
        experiment: everything that it asks for could be built.
        checkpoint: where it goes on from, as found before.

    Raises:
        UserError: the folder cannot be written, or another job trains there.
    """
    run_dir = experiment.run_dir
    with ExitStack() as stack:
        try:
            (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            _hold(stack.enter_context((run_dir / LOCK).open("a+")), run_dir)
            if latest(run_dir / CHECKPOINTS) != checkpoint:
                raise UserError(f"{run_dir} was trained on by another job in the meantime: type the same command again")
            # Whole or not at all: a disk that is full now must not cost the run its configuration.
            for name, text in {CONFIG: to_yaml(experiment), RUN: json.dumps(_provenance(experiment), indent=1)}.items():
                write_durably(run_dir / f"{name}.tmp", f"{text.rstrip()}\n".encode())
                (run_dir / f"{name}.tmp").replace(run_dir / name)
        except OSError as error:
            raise UserError(f"the run's folder {run_dir} cannot be written: {error}") from None
        yield


def _hold(lock: TextIO, run_dir: Path) -> None:
    try:
        # Unlike flock's, this lock is not inherited by the data workers, which may outlive a killed process.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        lock.seek(0)
        raise UserError(
            f"{run_dir} is being trained already, by {lock.read().strip()}. Wait for it, or end it, saved, with: "
            f"touch {run_dir / 'stop'}\nTo train another run, type name=ANOTHER_NAME"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()


def read_config(run_dir: Path) -> Experiment:
    """The resolved configuration of a run.

    Raises:
        UserError: `run_dir` is not a run's folder.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run's folder: no {CONFIG} in it. Runs of this folder: ls runs/")
    return parse_config(read_yaml(path), str(path))


def checkpoint_of(run_dir: Path, step: int | None) -> Path:
    """The run's checkpoint of `step`; None: the last one.

    Raises:
        UserError: there is none; names those that there are.
    """
    checkpoints = run_dir / CHECKPOINTS
    path = latest(checkpoints) if step is None else folder_of_step(checkpoints, step)
    if path is None or not path.is_dir():
        there = ", ".join(sorted(found.name for found in checkpoints.glob("step_????????"))) or "none"
        raise UserError(f"{run_dir} has no checkpoint {'yet' if path is None else path.name}; found: {there}")
    return path


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Leave the run's last word.

    Raises:
        UserError: it cannot be written.
    """
    replace(run_dir / SUMMARY, f"{json.dumps(summary, indent=1)}\n".encode())


def _refuse_another_config(experiment: Experiment, run_dir: Path) -> None:
    changed = differences(read_config(run_dir), experiment)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"the run in {run_dir} was started with another configuration:\n{lines}\n"
            f"To start a new run, type name=ANOTHER_NAME; to replace this one, remove its folder first: rm -r {run_dir}"
        )


def _provenance(experiment: Experiment) -> dict[str, Any]:
    return {
        "command": " ".join(sys.argv),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "cpu_cores": os.cpu_count(),
        "world_size": experiment.parallel.processes,
        "git": _git_state(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """The commit of the code that runs, and whether it was changed since; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
