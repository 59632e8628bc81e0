"""train.memory_snapshot: what held the memory of a GPU when it ran out, one file a rank in `RUN/profile`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer.observe.observers import writing_records
from trainer.training.profile import FOLDER

MAX_ENTRIES = 100_000
"""Allocations that are remembered, the last ones."""


@contextmanager
def snapshot_if_out_of_memory(wanted: bool, run_dir: Path, rank: int) -> Iterator[None]:
    """Record the allocations of the block, and leave them in a file if it raises torch.OutOfMemoryError.

    Args:
        wanted: train.memory_snapshot.
        run_dir: the run's folder.
        rank: this process.

    Raises:
        RankError: the file cannot be written.
    """
    if not wanted:
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=MAX_ENTRIES)
    try:
        yield
    except torch.OutOfMemoryError:
        path = run_dir / FOLDER / f"memory.rank_{rank}.pickle"
        with writing_records():
            path.parent.mkdir(exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
