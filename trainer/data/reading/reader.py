"""Read and decode samples by their ids, a batch at a time, into the caller's buffers.

The same ids give the same result in any process: nothing here depends on epochs or ranks. Nothing uses torch, so that
forked workers may run it.

Shapes: B samples, N samples of the split, M array members, T tasks of one kind.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.format.faults import out_of_memory
from trainer.data.format.index import scalar_tasks
from trainer.data.format.members import blank, decode_members, dense_tasks
from trainer.data.format.specs import (
    MISSING,
    ClassificationSpec,
    DenseRegressionSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
)
from trainer.data.format.tables import load_index
from trainer.data.reading.order import PADDING
from trainer.data.reading.shard_files import ShardFiles
from trainer.data.remote.folder import DataFolder

AT_ONCE = 256
"""Samples whose bytes are read before the first is decoded; see `decode.decode_many`."""

Row = tuple[int, int, int, int]
"""Shard, offset, bytes and CRC-32, as in INDEX_DTYPE."""


@dataclass(frozen=True)
class BadSample:
    """A sample whose content cannot be used.

    Attributes:
        slot: its slot in the batch.
        reason: `crc32` (the bytes changed since conversion) or `decode`.
        message: which sample, where it is stored, and what is wrong with it.
    """

    slot: int
    reason: str
    message: str


@dataclass(frozen=True)
class Found:
    """What happened while a batch was read.

    Attributes:
        bad: the samples that cannot be used.
        cache: use of the cache, as counted by `ShardFiles.end_batch`.
    """

    bad: tuple[BadSample, ...]
    cache: Counter[str]


class SplitReader:
    """Reads samples of one split by their ids.

    Args:
        data: the data folder.
        split: name of the split.
        tasks: whose targets to return, on the scale that they have here. Samples of a folder that does not use or
            does not have a task lack its label.

    Raises:
        UserError: the split is unknown, or the index is faulty.
    """

    def __init__(self, data: DataFolder, split: str, tasks: Sequence[TaskSpec]) -> None:
        manifest = data.manifest
        self._tasks = tuple(task.name for task in tasks)
        own = {task.name: task for task in data.tasks}
        labelled = [task for task in tasks if task.name in own]
        self._classified = [task.name for task in labelled if isinstance(task, ClassificationSpec)]
        regressed = [task for task in labelled if isinstance(task, RegressionSpec)]
        self._regressed = [task.name for task in regressed]
        self._mean_T, self._std_T = np.array([(task.mean, task.std) for task in regressed]).reshape(-1, 2).T
        column = {task.name: number for number, task in enumerate(scalar_tasks(manifest.tasks))}
        self._class_columns = [column[name] for name in self._classified]
        self._value_columns = [column[name] for name in self._regressed]
        self._unlabelled = {
            task.name: np.int64(MISSING) if isinstance(task, ClassificationSpec) else np.float32(np.nan)
            for task in scalar_tasks(tasks)
            if task.name not in own
        }
        self._dense = dense_tasks(tasks)
        places = {task.name: place for place, task in enumerate(dense_tasks(manifest.tasks), 1) if task.name in own}
        # Number of the buffer -> column of the index.
        self._members = {0: 0} | {
            number: places[task.name] for number, task in enumerate(self._dense, 1) if task.name in places
        }
        self._specs = [manifest.input, *(_as_stored(task, own.get(task.name, task)) for task in self._dense)]
        self._blanks = [blank(spec, 1, manifest.input) for spec in self._specs]
        self._name = data.name
        self._files = ShardFiles(data.path, manifest.split(split).shards, data.copy)
        self._index_NM, self._labels_NT = load_index(data.path, manifest, split)

    def buffers(self, batch_size: int) -> list[np.ndarray]:
        """Return buffers to read into, one per member: the input, then the dense tasks' targets; see `members.blank`.

        Raises:
            UserError: they do not fit into memory.
        """
        try:
            return [np.empty((batch_size, *empty.shape[1:]), empty.dtype) for empty in self._blanks]
        except MemoryError:
            size = batch_size * sum(empty.nbytes for empty in self._blanks)
            raise out_of_memory(f"hold a batch of {batch_size} samples, {size / 2**30:.3g} GiB") from None

    def read_into(self, buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray) -> Found:
        """Read and decode samples into buffers with one slot per sample, whose content is replaced.

        A bad sample keeps its slot, with an input of zeros and no labels. So does PADDING.

        Raises:
            UserError: a shard cannot be read, or ends before the sample.
        """
        bad: dict[int, BadSample] = {}
        slots = np.flatnonzero(sample_ids_B != PADDING).tolist()
        rows_BM = self._index_NM[sample_ids_B][:, list(self._members.values())].tolist()
        for begin in range(0, len(slots), AT_ONCE):
            for place, number in enumerate(self._members):
                buffer, spec = buffers[number], self._specs[number]
                rows = {slot: rows_BM[slot][place] for slot in slots[begin : begin + AT_ONCE] if slot not in bad}
                # Only the input is required.
                absent = [slot for slot, (_, _, size, _) in rows.items() if number and not size]
                buffer[absent] = self._blanks[number]
                contents, faults = self._fetch({slot: row for slot, row in rows.items() if slot not in absent})
                undecoded = decode_members(buffer, contents, spec)
                faults |= {slot: ("decode", str(fault)) for slot, fault in undecoded.items()}
                for slot, (reason, fault) in faults.items():
                    shard, offset, _, _ = rows[slot]
                    where = f"sample {sample_ids_B[slot]} ({self._files.path(shard)}, byte {offset})"
                    bad[slot] = BadSample(slot, reason, f"{where}: {fault}")
        cache = self._files.end_batch()
        unusable = [*bad, *np.flatnonzero(sample_ids_B == PADDING).tolist()]
        for number, (buffer, empty) in enumerate(zip(buffers, self._blanks, strict=True)):
            buffer[unusable if number in self._members else ...] = empty
        return Found(tuple(bad[slot] for slot in sorted(bad)), cache)

    def _fetch(self, rows: Mapping[int, Row]) -> tuple[dict[int, bytes], dict[int, tuple[str, str]]]:
        """Return slot -> bytes, and slot -> (reason, fault) for bytes that have changed."""
        contents, faults = {}, {}
        for slot, (shard, offset, size, crc32) in rows.items():
            data = self._files.pread(shard, offset, size)
            if zlib.crc32(data) == crc32:
                contents[slot] = data
            else:
                faults[slot] = "crc32", "its bytes have changed since conversion"
        return contents, faults

    def targets(
        self, sample_ids_B: np.ndarray, buffers: Sequence[np.ndarray], bad: Sequence[BadSample]
    ) -> dict[str, np.ndarray]:
        """Return the targets of the samples just read, by task, as in `Batch`."""
        usable_B = sample_ids_B != PADDING
        usable_B[[sample.slot for sample in bad]] = False
        labels_BT = self._labels_NT[sample_ids_B]
        classes_TB = np.where(usable_B, labels_BT[:, self._class_columns].T, MISSING).astype(np.int64)
        values_BT = (labels_BT[:, self._value_columns] - self._mean_T) / self._std_T
        values_TB = np.where(usable_B, values_BT.T, np.nan).astype(np.float32)
        targets = dict(zip(self._classified, classes_TB, strict=True))
        targets |= dict(zip(self._regressed, values_TB, strict=True))
        targets |= {name: np.full(len(sample_ids_B), value) for name, value in self._unlabelled.items()}
        targets |= {task.name: buffer for task, buffer in zip(self._dense, buffers[1:], strict=True)}
        return {name: targets[name] for name in self._tasks}

    def progress(self) -> dict[str, int]:
        """Return how many bytes have arrived of each shard that is being fetched."""
        prefix = f"{self._name}/" if self._name else ""
        return {f"{prefix}{shard}": size for shard, size in self._files.arriving().items()}

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        self._files.close()


def _as_stored(task: SegmentationSpec | DenseRegressionSpec, own: TaskSpec) -> SegmentationSpec | DenseRegressionSpec:
    """Return a task on the scale of the run, as this folder stores its targets."""
    assert isinstance(own, SegmentationSpec | DenseRegressionSpec)
    return task if task.stored_sizes == own.stored_sizes else task.model_copy(update={"stored_sizes": own.stored_sizes})
