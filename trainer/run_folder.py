"""A run's folder: the names of its files, the claim that a training makes on it, and what can be read back."""

import fcntl
import json
import os
import platform
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from trainer.clock import utc_now
from trainer.code_version import code_version, git_state
from trainer.config.file import parse_config, to_yaml
from trainer.config.resume import differences
from trainer.config.schema import Experiment
from trainer.config.yaml_file import read_yaml
from trainer.errors import UserError
from trainer.files import Appender, read_json, replace
from trainer.run_path import CONFIG, refuse_no_run
from trainer.runtime.agreement import names_of_code
from trainer.runtime.checkpoints.folder import (
    CHECKPOINTS,
    LATEST,
    folder_of_step,
    latest,
    point_to,
    published,
    set_aside,
    step_of,
)
from trainer.runtime.checkpoints.manifest import read_manifest, run_of
from trainer.runtime.checkpoints.reading import Found
from trainer.runtime.collectives import Runtime
from trainer.user_code import loaded_files

RUN = "run.json"
STARTS = "starts.jsonl"
"""What run.json said at each start, a line each; only appended to."""
METRICS = "metrics.jsonl"
LOG = "log.txt"
SUMMARY = "summary.json"
REPORT = "report.html"
PREDICTIONS = "predictions.npz"
BEST = "best"
"""In place of a step: the checkpoint that train.select has chosen."""
LOCK = ".lock"
MAX_HOLDER_CHARACTERS = 200
PACKAGES = ("paretrain", "torch", "accelerate", "deepspeed", "numpy", "scipy", "webdataset", "opencv-python-headless")


class RunLock:
    """A lock on a run's folder, held until it is closed or this process ends, however it ends."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock. The folder exists.

        Raises:
            UserError: another job has it.
            OSError: the folder cannot be written.
        """
        path = self._run_dir / LOCK
        # A link or a FIFO is not ours: what is behind it would be overwritten.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{path} is not a regular file: remove it")
        self._file = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        try:
            # Unlike flock's, this lock is not inherited by the data workers, which may outlive a killed process.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = self._file.read(MAX_HOLDER_CHARACTERS).strip()
            raise UserError(
                f"{self._run_dir} is being trained already, by {holder}. Wait for it, or end it, saved, with: "
                f"touch {self._run_dir / 'stop'}\nTo train another run, type name=ANOTHER_NAME"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}\n")
        self._file.flush()

    def close(self) -> None:
        """Release the lock, if it was acquired."""
        if self._file is not None:
            self._file.close()


@contextmanager
def claimed(
    experiment: Experiment, found: Found | None, runtime: Runtime, encoder_weights: Mapping[str, Any] | None = None
) -> Iterator[list[str]]:
    """Make the run's folder this configuration's, and hold it inside the block. Collective; rank 0 does it.

    Args:
        experiment: everything that it asks for could be built.
        found: the checkpoint that the run goes on from; None for a new run.
        runtime: the processes.
        encoder_weights: where those of a new run came from; None: from random numbers.

    Yields:
        What the user should know of the folder, a sentence each.

    Raises:
        UserError: the folder cannot be written, or another job trains there; the same on every rank.
    """
    with closing(RunLock(experiment.run_dir)) as lock:
        yield runtime.on_main(lambda: _claim(experiment, found, lock, encoder_weights))


def _claim(
    experiment: Experiment, found: Found | None, lock: RunLock, encoder_weights: Mapping[str, Any] | None
) -> list[str]:
    run_dir = experiment.run_dir
    try:
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if latest(run_dir / CHECKPOINTS) != (found.named if found else None):
            raise UserError(f"{run_dir} was trained on by another job in the meantime: type the same command again")
        notes = _set_checkpoints_aside(found) if found else _keep_old_metrics(run_dir)
        changes = _changes(experiment, step_of(found.snapshot.path)) if found else []
        notes += [f"{change['key']}: {change['change']}, as --allow-change allows" for change in changes]
        if found and experiment.model.encoder.weights is not None:
            encoder_weights = _recorded_weights(run_dir)
        provenance = _provenance(experiment) | {"changes": [*changes_of(run_dir), *changes]}
        provenance |= {"encoder_weights": encoder_weights} if encoder_weights else {}
        for name, text in {CONFIG: to_yaml(experiment), RUN: json.dumps(provenance, indent=1)}.items():
            replace(run_dir / name, f"{text.rstrip()}\n".encode())
        _append_start(run_dir, step_of(found.snapshot.path) if found else 0, provenance)
    except OSError as error:
        raise UserError(f"the run's folder {run_dir} cannot be written: {error}") from None
    return notes


def _append_start(run_dir: Path, step: int, provenance: Mapping[str, Any]) -> None:
    about = {"step": step, "job": os.environ.get("SLURM_JOB_ID"), "restarts": os.environ.get("SLURM_RESTART_COUNT")}
    with closing(Appender(run_dir / STARTS)) as starts:
        starts.append(f"{json.dumps(about | dict(provenance))}\n")


def _set_checkpoints_aside(found: Found) -> list[str]:
    """Rename checkpoints that are damaged or of another run, before new ones are written. Returns a note on each.

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
    """Keep the metrics of a start that ended before its first checkpoint. Returns a note on them.

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


def _changes(experiment: Experiment, step: int) -> list[dict[str, Any]]:
    """Return the changes of the configuration at this start that were allowed by name."""
    if not (experiment.run_dir / CONFIG).exists():
        return []
    changed = differences(read_config(experiment.run_dir), experiment)
    return [{"step": step, "key": key, "change": values} for key, values in changed.items()]


def changes_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return the changes of the configuration that were allowed at earlier starts: step, key, and old -> new value.

    Raises:
        UserError: run.json is damaged.
    """
    try:
        found = read_json(run_dir / RUN)
    except FileNotFoundError:
        return []
    changes = found.get("changes", []) if isinstance(found, dict) else None
    if not isinstance(changes, list) or not all(
        isinstance(change, dict) and isinstance(change.get("key"), str) for change in changes
    ):
        raise UserError(
            f"{run_dir / RUN}: changes: expected a list with a key each. Remove it to go on: rm {run_dir / RUN}"
        )
    return changes


def _recorded_weights(run_dir: Path) -> Any:
    """Return what the run's first start has recorded of the weights that it read; None if that is lost."""
    try:
        found = read_json(run_dir / RUN)
    except (FileNotFoundError, UserError):
        return None
    return found.get("encoder_weights") if isinstance(found, dict) else None


def _provenance(experiment: Experiment) -> dict[str, Any]:
    return {
        "command": _command(),
        "started_at": utc_now(),
        "host": platform.node(),
        "cpu_cores": os.cpu_count(),
        "world_size": experiment.parallel.processes,
        "git": code_version(),
        "user_git": git_state(Path.cwd()),
        "user_code": loaded_files(names_of_code(experiment)),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _command() -> str:
    """Return what a user types for what this process was started with, also where a launcher has started it."""
    program, *words = sys.argv
    ours = {"train.py": ["paretrain", "train"], "__main__.py": ["paretrain"], "paretrain": ["paretrain"]}
    return shlex.join([*ours.get(Path(program).name, [program]), *words])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_config(run_dir: Path) -> Experiment:
    """Read the resolved configuration of a run.

    Raises:
        UserError: `run_dir` is not a run's folder, or its configuration is damaged.
    """
    refuse_no_run(run_dir)
    path = run_dir / CONFIG
    return parse_config(read_yaml(path), str(path))


def checkpoint_of(run_dir: Path, step: int | str | None) -> Path:
    """Return the path of the run's checkpoint of `step`; BEST: the one that train.select has chosen; None: the last.

    Raises:
        UserError: there is none; the message names those that exist.
    """
    checkpoints = run_dir / CHECKPOINTS
    path = latest(checkpoints) if isinstance(step, str | None) else folder_of_step(checkpoints, step)
    if step == BEST and path is not None and path.is_dir():
        best = read_manifest(path).best
        if best is None:
            raise UserError(
                f"{run_dir} has not chosen a best checkpoint: it is trained without train.select, or was not evaluated "
                "yet. Leave --step out for the last one"
            )
        path = folder_of_step(checkpoints, best)
    if path is None or not path.is_dir():
        there = published(checkpoints)
        names = ", ".join(found.name for found in there) or "none"
        if path is None and there:
            raise UserError(f"{checkpoints / LATEST} is missing; found: {names}. Type --step {step_of(there[-1])}, say")
        raise UserError(f"{run_dir} has no checkpoint {'yet' if path is None else path.name}; found: {names}")
    return path
