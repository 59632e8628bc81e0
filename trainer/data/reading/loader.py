"""Batches for training and evaluation: this rank's slice of every global batch.

The trainer must not hand these loaders to `accelerate.prepare`: they are already cut into ranks.

Shapes: B samples of this rank's batch, H rows, W columns, C channels, F features.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from trainer.config.schema import AugmentConfig
from trainer.data.format.index import MISSING
from trainer.data.format.manifest import read_manifest
from trainer.data.reading.ahead import ShardsAhead, groups_from
from trainer.data.reading.augment import NOTHING, Draws, check_augment, draw
from trainer.data.reading.bad_samples import BadSamples
from trainer.data.reading.order import (
    GROUP_SAMPLES,
    PADDING,
    START,
    Cursor,
    check_global_batch,
    eval_batches,
    rank_slice,
    train_batches,
)
from trainer.data.reading.reader import BadSample, Found, SplitReader
from trainer.data.reading.workers import STOPPED_SECONDS, read_ahead
from trainer.data.remote.copies import Copy
from trainer.data.remote.folder import fits
from trainer.errors import UserError

__all__ = ["MISSING", "Batch", "Cursor", "EvalLoader", "TrainLoader"]


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        inputs: uint8 (B, H, W, C) images or float32 (B, F) features; zeros where the slot is padding or a bad sample.
        targets: by task, and without a label where the sample has none, for padding, and for a bad sample.
            classification: int64 (B,), MISSING (-1) without a label. regression: float32 (B,), as (value - mean) / std,
            NaN without. segmentation: uint8 (B, H, W), UNLABELLED (255) without. dense_regression: float32
            (B, H, W, C), as (value - mean) / std, NaN without.
        sample_ids_B: int64 position of each sample in its split; PADDING (-1) where the slot only fills up the batch.
        draws: how the images are to be augmented.
    """

    inputs: torch.Tensor
    targets: dict[str, torch.Tensor]
    sample_ids_B: torch.Tensor
    draws: Draws = NOTHING


class TrainLoader:
    """An endless iterator over this rank's slices of the canonical order's global batches.

    Whatever the number of ranks and workers, the global batches are the same, and every rank has the same number.
    A sample that cannot be used keeps its slot without any label, and is counted.

    Args:
        folder: of the data, with a `train` split.
        tasks: whose targets to give.
        global_batch: samples of all ranks together, in one step of the loader.
        seed: of the order and of what is drawn for the samples.
        rank: of this process.
        world_size: number of processes; divides `global_batch`.
        workers: processes that decode ahead; 0 decodes in this one, but of a copy of remote data one does, so that this
            one never waits for a server.
        cursor: where to go on, as `cursor` was.
        group_samples: samples that are shuffled together; a split of fewer is permuted as a whole.
        augment: what to draw for the samples.
        pin_memory: give tensors in page-locked memory, from which a GPU copies while the CPU goes on.
        copy: what the folder is, where it is a copy of remote data: shards that are not there are fetched.
        stopped_seconds: for how long a worker may be stopped.

    Attributes:
        cursor: position after the batches handed out so far; batches decoded ahead do not count.
        bad_samples: this rank's count of those that could not be used.
        fingerprint: SHA-256 over the data, the seed and the groups: what decides which sample stands at a cursor.
        num_samples: of the split.
        steps_per_epoch: global batches of one epoch.

    Raises:
        UserError: faulty data, an unknown task, an augmentation that does not fit them, or a batch that does not fit
            the split or the ranks; and, while iterating, data that can no longer be read, or a worker that died.
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
        group_samples: int = GROUP_SAMPLES,
        augment: AugmentConfig | None = None,
        pin_memory: bool = False,
        copy: Copy | None = None,
        stopped_seconds: float = STOPPED_SECONDS,
    ) -> None:
        manifest = read_manifest(folder)
        self.num_samples = manifest.num_samples("train")
        check_global_batch(self.num_samples, global_batch=global_batch, world_size=world_size)
        self._augment = augment or AugmentConfig()
        check_augment(self._augment, manifest.input, manifest.select_tasks(tasks))
        self._seed = seed
        self._global_batch = global_batch
        self._mine = rank_slice(global_batch, rank, world_size)
        self._reader = SplitReader(folder, manifest, "train", tasks, copy)
        self._pin_memory = pin_memory
        self.cursor = cursor.settle(self.num_samples, global_batch)
        self.steps_per_epoch = self.num_samples // global_batch
        # A split that is one group is permuted in the same way whatever the size of the groups.
        groups = f" {group_samples}" if group_samples < self.num_samples else ""
        self.fingerprint = hashlib.sha256(f"{manifest.fingerprint('train')} {seed}{groups}".encode()).hexdigest()
        self.bad_samples = BadSamples()
        self._cache_use: Counter[str] = Counter()
        sample_ids = train_batches(
            [shard.samples for shard in manifest.split("train").shards],
            global_batch=global_batch,
            seed=seed,
            rank=rank,
            world_size=world_size,
            cursor=self.cursor,
            group_samples=group_samples,
        )
        if copy is not None:
            workers = max(workers, 1)
        self._ahead = None
        if copy is not None and not fits(manifest, copy.max_bytes):
            shards = manifest.split("train").shards
            coming = groups_from(self.cursor, shards, seed=seed, group_samples=group_samples)
            # Each evaluation reads the whole test split, between two groups.
            kept = manifest.splits["test"].shards if "test" in manifest.splits else ()
            self._ahead = ShardsAhead(copy, coming, kept)
        self._batches = read_ahead(
            self._reader,
            sample_ids,
            batch_size=global_batch // world_size,
            workers=workers,
            stopped_seconds=stopped_seconds,
        )
        self._following: tuple[np.ndarray, list[np.ndarray], Found] | None = None

    def __iter__(self) -> Self:
        return self

    def ready(self) -> bool:
        """Whether the next batch has come; waits a second for it, or, without workers, reads it.

        Raises:
            UserError: as iterating. After True, that raises nothing.
        """
        if self._following is None:
            self._following = next(self._batches)
        return self._following is not None

    def __next__(self) -> Batch:
        while not self.ready():
            pass
        assert self._following is not None
        (sample_ids_B, buffers, found), self._following = self._following, None
        if not self.cursor.samples:
            self.bad_samples.begin_epoch()
        self.bad_samples.add(found.bad, len(sample_ids_B))
        self._cache_use += found.cache
        positions_B = np.arange(self._mine.start, self._mine.stop) + self.cursor.samples
        draws = draw(self._augment, seed=self._seed, epoch=self.cursor.epoch, positions_B=positions_B)
        self.cursor = self.cursor.advance(self.num_samples, self._global_batch)
        if self._ahead:
            self._ahead.reach(self.cursor)
        return _batch(self._reader, sample_ids_B, buffers, found.bad, draws, pin_memory=self._pin_memory)

    @property
    def cache_use(self) -> Counter[str]:
        """Of remote data: how often this rank found a shard in the cache (`hits`) or had to wait for it (`misses`), and
        the `fetched_bytes` of its workers and of those who fetch ahead. Nothing of a folder of this machine."""
        return self._cache_use + Counter(fetched_bytes=self._ahead.fetched_bytes if self._ahead else 0)

    def arriving(self) -> dict[str, int]:
        """Shards of remote data that are being fetched, by any process, and how many bytes of each have come."""
        return self._reader.progress()

    def padding_batch(self) -> Batch:
        """A batch of this rank's size in which no slot has a sample."""
        batch_size = self._mine.stop - self._mine.start
        sample_ids_B, buffers = np.full(batch_size, PADDING), self._reader.buffers(batch_size)
        return _batch(self._reader, sample_ids_B, buffers, self._reader.read_into(buffers, sample_ids_B).bad)

    def close(self) -> None:
        """Ends the workers and closes the shards."""
        if self._ahead:
            self._ahead.close()
        self._batches.close()
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
        pin_memory: give tensors in page-locked memory, from which a GPU copies while the CPU goes on.
        copy: what the folder is, where it is a copy of remote data: shards that are not there are fetched.
        stopped_seconds: for how long a worker may be stopped.

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
        pin_memory: bool = False,
        copy: Copy | None = None,
        stopped_seconds: float = STOPPED_SECONDS,
    ) -> None:
        manifest = read_manifest(folder)
        self._folder = folder
        self._reader = SplitReader(folder, manifest, split, tasks, copy)
        self._batch_size = batch_size
        self._workers, self._stopped_seconds = workers, stopped_seconds
        self._pin_memory = pin_memory
        self._sample_ids = eval_batches(
            manifest.num_samples(split), batch_size=batch_size, rank=rank, world_size=world_size
        )

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __iter__(self) -> Iterator[Batch]:
        batches = read_ahead(
            self._reader,
            self._sample_ids,
            batch_size=self._batch_size,
            workers=self._workers,
            stopped_seconds=self._stopped_seconds,
        )
        with closing(batches):
            for sample_ids_B, buffers, found in filter(None, batches):
                if found.bad:
                    raise UserError(
                        f"Evaluation needs every sample. Bad {found.bad[0].message}.\n"
                        f"Find all of them with: paretrain data check {self._folder}"
                    )
                yield _batch(self._reader, sample_ids_B, buffers, pin_memory=self._pin_memory)

    def close(self) -> None:
        """Closes the shards."""
        self._reader.close()


def _batch(
    reader: SplitReader,
    sample_ids_B: np.ndarray,
    buffers: Sequence[np.ndarray],
    bad: Sequence[BadSample] = (),
    draws: Draws = NOTHING,
    *,
    pin_memory: bool = False,
) -> Batch:
    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).pin_memory() if pin_memory else torch.from_numpy(array)

    targets = reader.targets(sample_ids_B, buffers, bad)
    return Batch(
        inputs=tensor(buffers[0]),
        targets={name: tensor(target) for name, target in targets.items()},
        sample_ids_B=torch.from_numpy(sample_ids_B),
        draws=draws,
    )
