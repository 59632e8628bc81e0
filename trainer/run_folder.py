"""The run's folder: what belongs in it, and whether this configuration may go on from what is there."""

import fcntl
import json
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from trainer.config.file import parse_config, to_yaml
from trainer.config.resume import differences
from trainer.config.schema import Experiment
from trainer.config.yaml_file import read_yaml
from trainer.errors import UserError
from trainer.files import replace
from trainer.observe.metrics import read_metrics
from trainer.runtime.agreement import names_of_code
from trainer.runtime.checkpoints.folder import (
    LATEST,
    folder_of_step,
    latest,
    point_to,
    published,
    set_aside,
    step_of,
)
from trainer.runtime.checkpoints.manifest import MANIFEST, run_of
from trainer.runtime.checkpoints.reading import Found, Snapshot, find_newest
from trainer.runtime.collectives import Runtime
from trainer.user_code import loaded_files

CONFIG = "config.yaml"
RUN = "run.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
SUMMARY = "summary.json"
REPORT = "report.html"
PREDICTIONS = "predictions.npz"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
MAX_HOLDER_CHARACTERS = 200
PACKAGES = ("paretrain", "torch", "accelerate", "deepspeed", "numpy", "scipy", "webdataset", "opencv-python-headless")


def find_start(experiment: Experiment, runtime: Runtime) -> Found | None:
    """Find and open the checkpoint that the run goes on from; None for a new run. Writes nothing. Collective.

    Raises:
        UserError: the run's folder, or its checkpoint, belongs to another configuration; or checkpoints are there, or
            were, and none can be gone on from.
        FaultError: the disk cannot read a checkpoint.
    """
    runtime.on_main(lambda: _refuse_another_config(experiment))
    found = find_newest(experiment.run_dir / CHECKPOINTS, runtime)
    if found:
        refuse_another_config(found.snapshot, experiment)
    else:
        runtime.on_main(lambda: _refuse_lost_checkpoints(experiment))
    return found


@contextmanager
def claimed(experiment: Experiment, found: Found | None) -> Iterator[list[str]]:
    """Make the run's folder this configuration's, and hold it for as long as this process lives, however it ends.

    Args:
        experiment: everything that it asks for could be built.
        found: where it goes on from, as found before.

    Yields:
        What the user is to be told of the folder.

    Raises:
        UserError: the folder cannot be written, or another job trains there.
    """
    run_dir = experiment.run_dir
    with ExitStack() as stack:
        try:
            (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            _hold(stack.enter_context(_open_lock(run_dir / LOCK)), run_dir)
            if latest(run_dir / CHECKPOINTS) != (found.named if found else None):
                raise UserError(f"{run_dir} was trained on by another job in the meantime: type the same command again")
            notes = _set_checkpoints_aside(found) if found else _keep_old_metrics(run_dir)
            for name, text in {CONFIG: to_yaml(experiment), RUN: json.dumps(_provenance(experiment), indent=1)}.items():
                replace(run_dir / name, f"{text.rstrip()}\n".encode())
        except OSError as error:
            raise UserError(f"the run's folder {run_dir} cannot be written: {error}") from None
        yield notes


def _open_lock(path: Path) -> TextIO:
    # A link, or a FIFO, is nothing of ours: what is behind it would be overwritten.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    lock = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") if _is_regular(descriptor) else None
    if lock is None:
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file: remove it")
    return lock


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _hold(lock: TextIO, run_dir: Path) -> None:
    try:
        # Unlike flock's, this lock is not inherited by the data workers, which may outlive a killed process.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = lock.read(MAX_HOLDER_CHARACTERS).strip()
        raise UserError(
            f"{run_dir} is being trained already, by {holder}. Wait for it, or end it, saved, with: "
            f"touch {run_dir / 'stop'}\nTo train another run, type name=ANOTHER_NAME"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()


def _set_checkpoints_aside(found: Found) -> list[str]:
    """Keep what is damaged, or of another run, out of the way of the checkpoints to come. Returns what is to be said.

    Raises:
        OSError: the folder cannot be written.
    """
    snapshot, notes = found.snapshot, []
    if found.damaged:
        point_to(snapshot.path)  # First: a kill between the two must not leave LATEST without its checkpoint.
    for path, damage in found.damaged.items():
        notes.append(
            f"{damage}. The run goes on from {snapshot.path.name} before it; the damaged one is kept as "
            f"{set_aside(path).name}"
        )
    for path in published(snapshot.path.parent):
        if step_of(path) > step_of(snapshot.path) and run_of(path) != snapshot.run:
            notes.append(f"checkpoint {path} is not of this run; it is kept as {set_aside(path).name}")
    return notes


def _keep_old_metrics(run_dir: Path) -> list[str]:
    """Keep the metrics of a start that ended before its first checkpoint. Returns what is to be said.

    Raises:
        OSError: the folder cannot be written.
    """
    path = run_dir / METRICS
    if not os.path.lexists(path) or (path.is_file() and not path.stat().st_size):
        return []
    number = 1
    while os.path.lexists(kept := run_dir / f"metrics.{number}.jsonl"):
        number += 1
    path.rename(kept)
    return [f"an earlier start ended before its first checkpoint, so the run starts anew; its metrics are in {kept}"]


def _refuse_lost_checkpoints(experiment: Experiment) -> None:
    """Refuse to start anew where the run's records say that there were checkpoints.

    Raises:
        UserError: they do.
    """
    run_dir = experiment.run_dir
    if not (run_dir / METRICS).exists():
        return
    reached = max((record["step"] for record in read_metrics(run_dir / METRICS)), default=0)
    every_steps = (read_config(run_dir) if (run_dir / CONFIG).exists() else experiment).checkpoint.every_steps
    # At its second checkpoint a run waits until the first one is published.
    if (run_dir / SUMMARY).exists() or reached > 2 * every_steps:
        raise UserError(
            f"the run in {run_dir} has reached step {reached} and saved checkpoints, but {run_dir / CHECKPOINTS} has "
            f"none. Put them back; or type name=ANOTHER_NAME to start a new run; or remove this one: rm -r {run_dir}"
        )


def read_config(run_dir: Path) -> Experiment:
    """The resolved configuration of a run.

    Raises:
        UserError: `run_dir` is not a run's folder, or its configuration is damaged.
    """
    path = run_dir / CONFIG
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(
            f"{run_dir} is not a run's folder: no {CONFIG} in it. Runs of this folder: ls {run_dir.parent}"
        ) from None
    return parse_config(values, str(path))


def checkpoint_of(run_dir: Path, step: int | None) -> Path:
    """The run's checkpoint of `step`; None: the last one.

    Raises:
        UserError: there is none; names those that there are.
    """
    checkpoints = run_dir / CHECKPOINTS
    path = latest(checkpoints) if step is None else folder_of_step(checkpoints, step)
    if path is None or not path.is_dir():
        there = published(checkpoints)
        names = ", ".join(found.name for found in there) or "none"
        if path is None and there:
            raise UserError(f"{checkpoints / LATEST} is missing; found: {names}. Type --step {step_of(there[-1])}, say")
        raise UserError(f"{run_dir} has no checkpoint {'yet' if path is None else path.name}; found: {names}")
    return path


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Leave the run's last word.

    Raises:
        UserError: it cannot be written.
    """
    replace(run_dir / SUMMARY, f"{json.dumps(summary, indent=1)}\n".encode())


def _refuse_another_config(experiment: Experiment) -> None:
    run_dir = experiment.run_dir
    if not os.path.lexists(run_dir / CONFIG):
        return  # The checkpoint knows its own.
    try:
        before = read_config(run_dir)
    except UserError as error:
        raise UserError(
            f"{error}\nPut it back from a copy; or, to train on, remove it, as the checkpoints hold the configuration "
            f"too: rm {run_dir / CONFIG}"
        ) from None
    changed = differences(before, experiment)
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
        "user_code": loaded_files(names_of_code(experiment)),
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


def refuse_another_config(snapshot: Snapshot, experiment: Experiment) -> None:
    """Refuse a checkpoint that was written under a configuration with other results.

    Raises:
        UserError: naming each difference.
    """
    written_under = parse_config(dict(snapshot.config), f"config in {snapshot.path / MANIFEST}")
    changed = differences(written_under, experiment)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"checkpoint {snapshot.path} was written under another configuration:\n{lines}\n"
            "To go on from it, type what it was written under; to start a new run, type name=ANOTHER_NAME"
        )
