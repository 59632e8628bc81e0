"""Batches for training and evaluation: this rank's slice of every global batch.

The trainer must not hand these loaders to `accelerate.prepare`: they are already cut into ranks.

Shapes: B samples of this rank's batch, H rows, W columns, C channels, T tasks.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from trainer.data.index import MISSING
from trainer.data.manifest import read_manifest
from trainer.data.order import START, Cursor, check_global_batch, eval_batches, train_batches
from trainer.data.reader import Rows, SplitReader
from trainer.errors import UserError

__all__ = ["MISSING", "Batch", "Cursor", "EvalLoader", "TrainLoader"]

logger = logging.getLogger(__name__)

NUM_BAD_LOGGED = 20
"""Bad samples that are logged one by one; all are counted."""

WORKER_TIMEOUT_SECONDS = 300
"""A batch that takes a worker longer than this is a hung disk, and an error."""


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        images_BHWC: uint8; zeros where the slot is padding or a bad sample.
        targets: int64 class numbers of shape (B,) by task; MISSING where there is no label, for padding, and for a bad
            sample.
        sample_ids_B: int64 position of each sample in its split; PADDING (-1) where the slot only fills up the batch.
    """

    images_BHWC: torch.Tensor
    targets: dict[str, torch.Tensor]
    sample_ids_B: torch.Tensor


class TrainLoader:
    """An endless iterator over this rank's slices of the canonical order's global batches.

    Whatever the number of ranks and workers, the global batches are the same, and every rank has the same number.
    A sample that cannot be used keeps its slot with MISSING targets, is counted in `bad_samples`, and the first few are
    logged.

    Args:
        folder: of the data, with a `train` split.
        tasks: whose targets to give.
        global_batch: samples of all ranks together, in one step of the loader.
        seed: of the order.
        rank: of this process.
        world_size: number of processes; divides `global_batch`.
        workers: processes that decode ahead; 0 decodes in this one.
        cursor: where to go on, as `cursor` was.

    Attributes:
        cursor: position after the batches handed out so far; batches decoded ahead do not count.
        fingerprint: SHA-256 over the data and the seed: what decides which sample stands at a cursor.
        steps_per_epoch: global batches of one epoch.
        bad_samples: this rank's unusable samples so far, by reason.

    Raises:
        UserError: faulty data, an unknown task, or a batch that does not fit the split or the ranks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tasks: Sequence[str],
        global_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        cursor: Cursor = START,
    ) -> None:
        manifest = read_manifest(folder)
        self._num_samples = manifest.num_samples("train")
        check_global_batch(self._num_samples, global_batch=global_batch, world_size=world_size)
        self._global_batch = global_batch
        self._tasks = tuple(tasks)
        self._reader = SplitReader(folder, manifest, "train", tasks)
        self.cursor = cursor.settle(self._num_samples, global_batch)
        self.steps_per_epoch = self._num_samples // global_batch
        self.fingerprint = hashlib.sha256(f"{manifest.fingerprint('train')} {seed}".encode()).hexdigest()
        self.bad_samples: Counter[str] = Counter()
        sample_ids = train_batches(
            self._num_samples,
            global_batch=global_batch,
            seed=seed,
            rank=rank,
            world_size=world_size,
            cursor=self.cursor,
        )
        self._rows: Iterator[Rows | UserError] = iter(_rows(self._reader, sample_ids, workers))

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> Batch:
        rows = _unwrap(next(self._rows))
        for bad in rows.bad:
            if self.bad_samples.total() < NUM_BAD_LOGGED:
                logger.warning("Bad %s", bad.message)
            self.bad_samples[bad.reason] += 1
        self.cursor = self.cursor.advance(self._num_samples, self._global_batch)
        return _batch(rows, self._tasks)

    def close(self) -> None:
        """Ends the workers and closes the shards."""
        self._rows = iter(())
        self._reader.close()


class EvalLoader:
    """One pass in which all ranks together see every sample of a split exactly once; iterate again for another.

    Every rank gets the same number of batches, all of `batch_size` slots; slots left over are padding.

    Args:
        folder: of the data.
        split: which split.
        tasks: whose targets to give.
        batch_size: samples of this rank's batch.
        rank: of this process.
        world_size: number of processes.
        workers: processes that decode ahead; 0 decodes in this one.

    Raises:
        UserError: faulty data or an unknown task; and, while iterating, a sample that cannot be used, since a metric
            over fewer samples would not be the metric.
    """

    def __init__(
        self,
        folder: Path,
        *,
        split: str = "test",
        tasks: Sequence[str],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        manifest = read_manifest(folder)
        self._tasks = tuple(tasks)
        self._reader = SplitReader(folder, manifest, split, tasks)
        self._sample_ids = eval_batches(
            manifest.num_samples(split), batch_size=batch_size, rank=rank, world_size=world_size
        )
        self._rows = _rows(self._reader, self._sample_ids, workers)

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __iter__(self) -> Iterator[Batch]:
        for found in self._rows:
            rows = _unwrap(found)
            if rows.bad:
                raise UserError(f"Evaluation needs every sample. Bad {rows.bad[0].message}.")
            yield _batch(rows, self._tasks)

    def close(self) -> None:
        """Closes the shards."""
        self._reader.close()


def _rows(reader: SplitReader, sample_ids: Iterable[np.ndarray], workers: int) -> "DataLoader[Rows | UserError]":
    return DataLoader(
        reader,
        batch_sampler=sample_ids,  # type: ignore[arg-type]  # an array of ids serves as the list of ids
        collate_fn=_as_read,  # type: ignore[arg-type]  # the reader gives whole batches
        num_workers=workers,
        timeout=WORKER_TIMEOUT_SECONDS if workers else 0,
        # Without one of its own, every pass would draw from torch's global generator and change what follows.
        generator=torch.Generator(),
    )


def _as_read(rows: Rows | UserError) -> Rows | UserError:
    return rows


def _unwrap(found: Rows | UserError) -> Rows:
    if isinstance(found, UserError):
        raise found
    return found


def _batch(rows: Rows, tasks: Sequence[str]) -> Batch:
    return Batch(rows.images_BHWC, dict(zip(tasks, rows.labels_TB, strict=True)), rows.sample_ids_B)
