"""Check what this machine can carry: cores for the processes of a run, and a folder for its output."""

import os
import tempfile
from pathlib import Path

from trainer.config.sections.parallel import ParallelConfig
from trainer.errors import UserError

MAX_BUSY_PER_CORE = 32
"""Upper bound of processes, workers and threads per core: nobody runs more on purpose, and more stall the machine."""


def num_cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def refuse_flood(parallel: ParallelConfig, workers: int, runs: int = 1) -> None:
    """Refuse a run that would start far more processes, workers and threads on this machine than it has cores.

    Args:
        parallel: the processes, all of which would start here.
        workers: data workers of each process.
        runs: number of such runs at a time.

    Raises:
        UserError: it would.
    """
    busy, most = runs * parallel.processes * (parallel.threads + workers), MAX_BUSY_PER_CORE * num_cores()
    if busy > most:
        at_a_time = f"{runs} runs at a time x " if runs > 1 else ""
        raise UserError(
            f"{at_a_time}parallel.processes={parallel.processes} x (parallel.threads={parallel.threads} + "
            f"data.workers={workers}) is {busy:,}, and this machine has {num_cores()} cores: expected at most {most:,}."
            " Type smaller numbers; on several machines, see launch/README.md"
        )


def try_to_write(folder: Path) -> None:
    """Try to create a run's folder and a file in it, under a temporary folder that is removed at once.

    Raises:
        UserError: it cannot be written.
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
