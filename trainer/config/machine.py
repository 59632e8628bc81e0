"""What this machine can carry: cores for the processes of a run, and a folder for what it leaves."""

import os
import tempfile
from pathlib import Path

from trainer.config.schema import Experiment
from trainer.errors import UserError

MAX_BUSY_PER_CORE = 32
"""Beyond what anybody runs on purpose; a machine that is asked for more comes to a halt."""


def num_cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def refuse_flood(experiment: Experiment, runs: int = 1) -> None:
    """Refuse a run that would start far more processes, workers and threads on this machine than it has cores.

    Args:
        experiment: all of its processes would start here.
        runs: as many of its kind as would train at a time.

    Raises:
        UserError: it would.
    """
    parallel, workers = experiment.parallel, experiment.data.workers
    busy, most = runs * parallel.processes * (parallel.threads + workers), MAX_BUSY_PER_CORE * num_cores()
    if busy > most:
        at_a_time = f"{runs} runs at a time x " if runs > 1 else ""
        raise UserError(
            f"{at_a_time}parallel.processes={parallel.processes} x (parallel.threads={parallel.threads} + "
            f"data.workers={workers}) is {busy:,}, and this machine has {num_cores()} cores: expected at most {most:,}."
            " Type smaller numbers; on several machines, see launch/README.md"
        )


def try_to_write(folder: Path) -> None:
    """Make folders and a file of the same names as a run would, in a folder that is removed at once.

    Raises:
        UserError: it cannot be done.
    """
    folder = Path(os.path.abspath(folder))
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryDirectory(prefix=".paretrain-", dir=there) as trial:
            inside = Path(trial, folder.relative_to(there))
            inside.mkdir(parents=True, exist_ok=True)
            (inside / "trial").write_bytes(bytes(4096))
    except OSError as error:
        raise UserError(f"the run's folder {folder} cannot be written: {error.strerror}") from None
