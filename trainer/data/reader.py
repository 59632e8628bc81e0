"""Sample ids to decoded samples: a map-style dataset that reads a whole batch at once.

Whatever reads it, in whatever process, the same ids give the same result; nothing here knows of epochs or ranks.

Shapes: B samples, H rows, W columns, C channels, T tasks, N samples of the split.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from trainer.data.decode import BadImageError, decode_into
from trainer.data.index import MISSING, load_index, remedy
from trainer.data.manifest import Manifest
from trainer.data.order import PADDING
from trainer.errors import UserError


@dataclass(frozen=True)
class BadSample:
    """A sample whose content cannot be used.

    Attributes:
        reason: `crc32` (the bytes changed since conversion) or `decode`.
        message: which sample, where it lies, and what is wrong with it.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class Rows:
    """What a list of sample ids reads as.

    Attributes:
        images_BHWC: uint8; zeros for padding and bad samples.
        labels_TB: int64; MISSING for padding, bad samples and absent labels.
        sample_ids_B: int64; PADDING where the slot only fills up the batch.
        bad: the samples that could not be used.
    """

    images_BHWC: torch.Tensor
    labels_TB: torch.Tensor
    sample_ids_B: torch.Tensor
    bad: tuple[BadSample, ...]


class SplitReader(Dataset[Rows | UserError]):
    """Reads samples of one split by their ids.

    Args:
        folder: of the data.
        manifest: as read from it.
        split: which split.
        tasks: whose labels to give, in this order.

    Raises:
        UserError: an unknown split or task, or a faulty index.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, tasks: Sequence[str]) -> None:
        names = [task.name for task in manifest.tasks]
        self._columns_T = [names.index(task.name) for task in manifest.select_tasks(tasks)]
        self._folder = Path(folder)
        self._manifest = manifest
        self._shards = manifest.split(split).shards
        self._index_N, self._labels_NT = load_index(self._folder, manifest, split)
        self._descriptors: dict[int, int] = {}
        self._arguments = (folder, manifest, split, tasks)

    def __reduce__(self) -> tuple[type["SplitReader"], tuple[object, ...]]:
        # A worker that is not forked maps the index and opens the shards itself: neither can be pickled.
        return SplitReader, self._arguments

    def __getitems__(self, sample_ids_B: np.ndarray) -> Rows | UserError:
        """What a DataLoader calls; an error is a value here, since torch would wrap its message in a traceback."""
        try:
            return self.read(sample_ids_B)
        except UserError as error:
            return error

    def read(self, sample_ids_B: np.ndarray) -> Rows:
        """Reads and decodes samples into one buffer.

        A sample with bad content keeps its slot: a zero image, all its labels MISSING, and an entry in `bad`.

        Raises:
            UserError: a shard that has gone, or ends before the sample.
        """
        image = self._manifest.image
        images_BHWC = np.zeros((len(sample_ids_B), *image.shape), np.uint8)
        usable_B = sample_ids_B != PADDING
        bad = []
        slots = np.flatnonzero(usable_B)
        for slot, row in zip(slots.tolist(), self._index_N[sample_ids_B[slots]].tolist(), strict=True):
            shard, offset, size, crc32 = row
            data = self._pread(shard, offset, size)
            try:
                if zlib.crc32(data) != crc32:
                    raise BadImageError("its bytes have changed since conversion")
                decode_into(images_BHWC[slot], data, image)
            except BadImageError as error:
                images_BHWC[slot] = 0
                usable_B[slot] = False
                reason = "decode" if zlib.crc32(data) == crc32 else "crc32"
                bad.append(
                    BadSample(reason, f"sample {sample_ids_B[slot]} ({self._path(shard)}, byte {offset}): {error}")
                )
        labels_TB = np.where(usable_B, self._labels_NT[sample_ids_B][:, self._columns_T].T, MISSING)
        return Rows(
            torch.from_numpy(images_BHWC),
            torch.from_numpy(labels_TB.astype(np.int64)),
            torch.tensor(sample_ids_B),
            tuple(bad),
        )

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        try:
            descriptor = self._descriptors.get(shard)
            if descriptor is None:
                descriptor = self._descriptors[shard] = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise UserError(f"{self._path(shard)} cannot be read: {error}.\n{remedy(self._folder)}") from None
        if len(data) < size:
            found = f"expected {size} bytes at byte {offset}, found {len(data)}"
            raise UserError(f"{self._path(shard)}: {found}.\n{remedy(self._folder)}")
        return data

    def _path(self, shard: int) -> Path:
        return self._folder / self._shards[shard].file

    def close(self) -> None:
        """Closes the shards; reading again opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
