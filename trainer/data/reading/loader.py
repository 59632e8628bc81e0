"""Load batches for training and evaluation: this rank's slice of every global batch.

Do not pass these loaders to `accelerate.prepare`: they already give each rank its slice.

Shapes: B samples of this rank's batch, H rows, W columns, C channels, F features.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from trainer.config.sections.data import AugmentConfig
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
from trainer.data.remote.folder import DataFolder, fits
from trainer.errors import UserError


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        inputs: uint8 (B, H, W, C) images or float32 (B, F) features; zeros for padding and bad samples.
        targets: task -> target. The value after `or` marks samples without a label, padding and bad samples.
            classification: int64 (B,), or MISSING (-1). regression: float32 (B,), as (value - mean) / std, or NaN.
            segmentation: uint8 (B, H, W), or UNLABELLED (255). dense_regression: float32 (B, H, W, C), as
            (value - mean) / std, or NaN.
        sample_ids_B: int64 position of each sample in its split; PADDING (-1) for a slot that only fills up the batch.
        draws: how to augment the images.
    """

    inputs: torch.Tensor
    targets: dict[str, torch.Tensor]
    sample_ids_B: torch.Tensor
    draws: Draws = NOTHING


@dataclass(frozen=True)
class RankOptions:
    """Which rank this is, and how it reads. The global batches do not depend on any of it.

    Attributes:
        rank: this process's rank.
        world_size: number of processes.
        workers: processes that decode ahead; 0 decodes in this process. Training on a copy of remote data uses at least
            one, so that this process never waits for a server.
        pin_memory: put tensors in page-locked memory, from which a GPU copies asynchronously.
        stopped_seconds: how long a worker may be stopped.
    """

    rank: int = 0
    world_size: int = 1
    workers: int = 0
    pin_memory: bool = False
    stopped_seconds: float = STOPPED_SECONDS


ALONE = RankOptions()
"""One process without workers."""


class TrainLoader:
    """An endless iterator over this rank's slices of the canonical order's global batches.

    The global batches are the same for any number of ranks and workers, and every rank gets equally many.
    A sample that cannot be used keeps its slot, without labels, and is counted.

    Args:
        data: a data folder with a `train` split.
        tasks: names of the tasks whose targets to return.
        global_batch: samples per step of all ranks together; `options.world_size` must divide it.
        seed: seed of the order and of the augmentation.
        group_samples: samples that are shuffled together; a smaller split is permuted as a whole.
        augment: which augmentations to draw random numbers for.
        cursor: where to continue: the `cursor` of an earlier loader.
        eval_split: the split whose shards stay in a small cache of remote data, as each evaluation reads them.
        options: which rank this is, and how it reads.

    Attributes:
        cursor: position after the batches returned so far; batches decoded ahead do not count.
        bad_samples: this rank's count of samples that cannot be used.
        fingerprint: SHA-256 of data, seed and groups: all that determines which sample is at a cursor.
        num_samples: number of samples of the split.
        steps_per_epoch: number of global batches per epoch.

    Raises:
        UserError: the data is faulty, a task is unknown, the augmentation does not fit the data, or the batch does not
            fit the split or the ranks; while iterating: data can no longer be read, or a worker died.
    """

    def __init__(
        self,
        data: DataFolder,
        *,
        tasks: Sequence[str],
        global_batch: int,
        seed: int,
        group_samples: int = GROUP_SAMPLES,
        augment: AugmentConfig | None = None,
        cursor: Cursor = START,
        eval_split: str = "test",
        options: RankOptions = ALONE,
    ) -> None:
        manifest, copy = data.manifest, data.copy
        rank, world_size = options.rank, options.world_size
        self.num_samples = manifest.num_samples("train")
        check_global_batch(self.num_samples, global_batch=global_batch, world_size=world_size)
        self._augment = augment or AugmentConfig()
        check_augment(self._augment, manifest.input, manifest.select_tasks(tasks))
        self._seed = seed
        self._global_batch = global_batch
        self._own_slots = rank_slice(global_batch, rank, world_size)
        self._reader = SplitReader(data, "train", tasks)
        self._pin_memory = options.pin_memory
        self.cursor = cursor.settle(self.num_samples, global_batch)
        self.steps_per_epoch = self.num_samples // global_batch
        # A split of one group has the same order for any larger group size.
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
        self._ahead = None
        if copy is not None and not fits(manifest, copy.max_bytes):
            shards = manifest.split("train").shards
            coming = groups_from(self.cursor, shards, seed=seed, group_samples=group_samples)
            kept = manifest.splits[eval_split].shards if eval_split in manifest.splits else ()
            self._ahead = ShardsAhead(copy, coming, kept)
        self._batches = read_ahead(
            self._reader,
            sample_ids,
            batch_size=global_batch // world_size,
            workers=options.workers if copy is None else max(options.workers, 1),
            stopped_seconds=options.stopped_seconds,
        )
        self._next: tuple[np.ndarray, list[np.ndarray], Found] | None = None

    def __iter__(self) -> Self:
        return self

    def ready(self) -> bool:
        """Wait up to a second for the next batch, and return whether it is there. Without workers, read it.

        Raises:
            UserError: as while iterating. After True, the next iteration raises nothing.
        """
        if self._next is None:
            self._next = next(self._batches)
        return self._next is not None

    def __next__(self) -> Batch:
        while not self.ready():
            pass
        assert self._next is not None
        (sample_ids_B, buffers, found), self._next = self._next, None
        if not self.cursor.samples:
            self.bad_samples.begin_epoch()
        self.bad_samples.add(found.bad, len(sample_ids_B))
        self._cache_use += found.cache
        positions_B = np.arange(self._own_slots.start, self._own_slots.stop) + self.cursor.samples
        draws = draw(self._augment, seed=self._seed, epoch=self.cursor.epoch, positions_B=positions_B)
        self.cursor = self.cursor.advance(self.num_samples, self._global_batch)
        if self._ahead:
            self._ahead.reach(self.cursor)
        return _batch(self._reader, sample_ids_B, buffers, found.bad, draws, pin_memory=self._pin_memory)

    @property
    def cache_use(self) -> Counter[str]:
        """Use of the cache for remote data: `hits` and `misses` of this rank's workers, and `fetched_bytes`, including
        shards fetched ahead. Empty for local data."""
        return self._cache_use + Counter(fetched_bytes=self._ahead.fetched_bytes if self._ahead else 0)

    def arriving(self) -> dict[str, int]:
        """Return how many bytes have arrived of each shard that any process is fetching."""
        return self._reader.progress()

    def padding_batch(self) -> Batch:
        """Return a batch of this rank's size that consists of padding."""
        batch_size = self._own_slots.stop - self._own_slots.start
        sample_ids_B, buffers = np.full(batch_size, PADDING), self._reader.buffers(batch_size)
        return _batch(self._reader, sample_ids_B, buffers, self._reader.read_into(buffers, sample_ids_B).bad)

    def close(self) -> None:
        """End the workers and close the shards."""
        if self._ahead:
            self._ahead.close()
        self._batches.close()
        self._reader.close()


class EvalLoader:
    """A pass in which all ranks together see every sample of a split exactly once; each iteration is a new pass.

    Every rank gets the same number of batches of `batch_size` slots; the last ones may contain padding.

    Args:
        data: the data folder.
        split: name of the split.
        tasks: names of the tasks whose targets to return.
        batch_size: samples of this rank's batches.
        options: which rank this is, and how it reads.

    Raises:
        UserError: the data is faulty or a task is unknown; while iterating: a sample cannot be used, because a metric
            over fewer samples would be another metric.
    """

    def __init__(
        self,
        data: DataFolder,
        *,
        split: str = "test",
        tasks: Sequence[str],
        batch_size: int,
        options: RankOptions = ALONE,
    ) -> None:
        self._folder = data.path
        self._reader = SplitReader(data, split, tasks)
        self._batch_size = batch_size
        self._options = options
        self._sample_ids = eval_batches(
            data.manifest.num_samples(split),
            batch_size=batch_size,
            rank=options.rank,
            world_size=options.world_size,
        )

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __iter__(self) -> Iterator[Batch]:
        batches = read_ahead(
            self._reader,
            self._sample_ids,
            batch_size=self._batch_size,
            workers=self._options.workers,
            stopped_seconds=self._options.stopped_seconds,
        )
        with closing(batches):
            for sample_ids_B, buffers, found in filter(None, batches):
                if found.bad:
                    raise UserError(
                        f"Evaluation needs every sample. Bad {found.bad[0].message}.\n"
                        f"Find all of them with: paretrain data check {self._folder}"
                    )
                yield _batch(self._reader, sample_ids_B, buffers, pin_memory=self._options.pin_memory)

    def close(self) -> None:
        """Close the shards."""
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
