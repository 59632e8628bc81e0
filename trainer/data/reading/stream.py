"""One source's part of every global batch: which samples, in which order, and how far training has come in them.

Shapes: B samples of this source in this rank's batch.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.config.sections.data import AugmentConfig
from trainer.data.format.specs import TaskSpec
from trainer.data.reading.ahead import ShardsAhead, groups_from
from trainer.data.reading.augment import Draws, check_augment, draw
from trainer.data.reading.bad_samples import BadSamples
from trainer.data.reading.order import Cursor, check_global_batch, order_seed, rank_slice, train_batches
from trainer.data.reading.reader import Found
from trainer.data.remote.folder import DataFolder


class Stream:
    """The endless canonical order of a source's train split, cut into its parts of the global batches.

    A source has an order, epochs and a cursor of its own: they do not depend on the other sources of a run.

    Args:
        data: the source.
        tasks: whose targets are read.
        samples_per_step: its samples in each step of all ranks together; `world_size` must divide it.
        seed: the run's.
        group_samples: samples that are shuffled together; a smaller split is permuted as a whole.
        augment: which augmentations to draw random numbers for.
        cursor: where to continue: the `cursor` of an earlier stream.
        rank: this process's rank.
        world_size: number of processes.

    Attributes:
        data: the source.
        samples_per_step: as given.
        num_samples: number of samples of the split.
        steps_per_epoch: number of whole steps in an epoch.
        cursor: position after the batches that were taken so far; batches decoded ahead do not count.
        bad_samples: this rank's count of samples that cannot be used.
        fingerprint: SHA-256 of data, seed and groups: all that determines which sample is at a cursor.

    Raises:
        UserError: the augmentation does not fit the data, or the samples of a step do not fit the split or the ranks.
    """

    def __init__(
        self,
        data: DataFolder,
        *,
        tasks: Sequence[TaskSpec],
        samples_per_step: int,
        seed: int,
        group_samples: int,
        augment: AugmentConfig,
        cursor: Cursor,
        rank: int,
        world_size: int,
    ) -> None:
        manifest = data.manifest
        self.data = data
        self.samples_per_step = samples_per_step
        self.num_samples = manifest.num_samples("train")
        check_global_batch(self.num_samples, global_batch=samples_per_step, world_size=world_size)
        check_augment(augment, manifest.input, tasks)
        self.steps_per_epoch = self.num_samples // samples_per_step
        self.cursor = cursor.settle(self.num_samples, samples_per_step)
        self.bad_samples = BadSamples()
        self._shards = manifest.split("train").shards
        self._seed = order_seed(seed, data.name)
        self._group_samples = group_samples
        self._augment = augment
        self._rank, self._world_size = rank, world_size
        self._own_slots = rank_slice(samples_per_step, rank, world_size)
        self._ahead: ShardsAhead | None = None
        # A split of one group has the same order for any larger group size.
        groups = f" {group_samples}" if group_samples < self.num_samples else ""
        facts = f"{manifest.fingerprint('train')} {self._seed}{groups}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def sample_ids(self) -> Iterator[np.ndarray]:
        """Yield this rank's sample ids of every step from the cursor on, (B,), without end."""
        return train_batches(
            [shard.samples for shard in self._shards],
            global_batch=self.samples_per_step,
            seed=self._seed,
            rank=self._rank,
            world_size=self._world_size,
            cursor=self.cursor,
            group_samples=self._group_samples,
        )

    def fetch_ahead(self, kept_split: str) -> None:
        """From now on, fetch the next group of shards while training uses the current one. Nothing for local data.

        Args:
            kept_split: whose shards stay in the cache, as each evaluation reads them.
        """
        data = self.data
        if data.copy:
            coming = groups_from(self.cursor, self._shards, seed=self._seed, group_samples=self._group_samples)
            kept = data.manifest.splits[kept_split].shards if kept_split in data.manifest.splits else ()
            self._ahead = ShardsAhead(data.copy, coming, kept)

    def take(self, found: Found) -> Draws:
        """Count a step's samples as taken, and return how to augment this rank's (B,) of them."""
        if not self.cursor.samples:
            self.bad_samples.begin_epoch()
        own = self._own_slots
        self.bad_samples.add(found.bad, own.stop - own.start)
        positions_B = np.arange(own.start, own.stop) + self.cursor.samples
        draws = draw(self._augment, seed=self._seed, epoch=self.cursor.epoch, positions_B=positions_B)
        self.cursor = self.cursor.advance(self.num_samples, self.samples_per_step)
        if self._ahead:
            self._ahead.reach(self.cursor)
        return draws

    @property
    def fetched_ahead(self) -> Counter[str]:
        """The bytes of shards that were fetched ahead, as `fetched_bytes`. Empty where there are none."""
        return Counter(fetched_bytes=self._ahead.fetched_bytes) if self._ahead else Counter()

    def close(self) -> None:
        """End the fetching."""
        if self._ahead:
            self._ahead.close()
