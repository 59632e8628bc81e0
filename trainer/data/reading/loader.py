"""Load batches for training: this rank's slice of every global batch.

Do not pass this loader to `accelerate.prepare`: it already gives each rank its slice.

Shapes: B samples of this rank's batch.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from trainer.config.sections.data import AugmentConfig
from trainer.data.format.specs import TaskSpec
from trainer.data.reading.augment import joined
from trainer.data.reading.batch import ALONE, Batch, RankOptions, batch_of
from trainer.data.reading.inputs import by_input
from trainer.data.reading.mixed_reader import MixedReader
from trainer.data.reading.order import GROUP_SAMPLES, PADDING, START, Cursor
from trainer.data.reading.reader import Found, SplitReader
from trainer.data.reading.stream import Stream
from trainer.data.reading.workers import read_ahead
from trainer.data.remote.folder import DataFolder, fits


class TrainLoader:
    """An endless iterator over this rank's slices of the global batches of one source or several.

    A global batch has the same number of samples of each source every step, and every rank has equally many of each.
    The global batches are the same for any number of ranks and workers. A sample that cannot be used keeps its slot,
    without labels, and is counted.

    Args:
        sources: data folders with a `train` split; those whose inputs are alike follow one another.
        samples_per_step: how many samples of each source a step of all ranks has; `options.world_size` must divide
            each of them.
        tasks: whose targets to return; see `SplitReader`.
        seed: seed of the order and of the augmentation.
        group_samples: samples that are shuffled together; a smaller split is permuted as a whole.
        augment: which augmentations to draw random numbers for.
        cursors: source's name -> where to continue: the `cursor` of an earlier stream. Without one, at the start.
        eval_split: the split whose shards stay in a small cache of remote data, as each evaluation reads them.
        options: which rank this is, and how it reads.

    Attributes:
        streams: of the sources: the place in each of them, and its bad samples.
        samples_of_inputs: how many samples of this rank's batches have each input; see `shared_inputs`.

    Raises:
        UserError: the data is faulty, the augmentation does not fit the data, or the batch does not fit the splits or
            the ranks; while iterating: data can no longer be read, or a worker died.
    """

    def __init__(
        self,
        sources: Sequence[DataFolder],
        *,
        samples_per_step: Sequence[int],
        tasks: Sequence[TaskSpec],
        seed: int,
        group_samples: int = GROUP_SAMPLES,
        augment: AugmentConfig | None = None,
        cursors: Mapping[str, Cursor] | None = None,
        eval_split: str = "test",
        options: RankOptions = ALONE,
    ) -> None:
        self.streams = tuple(
            Stream(
                source,
                tasks=tasks,
                samples_per_step=count,
                seed=seed,
                group_samples=group_samples,
                augment=augment or AugmentConfig(),
                cursor=(cursors or {}).get(source.name, START),
                rank=options.rank,
                world_size=options.world_size,
            )
            for source, count in zip(sources, samples_per_step, strict=True)
        )
        counts = [count // options.world_size for count in samples_per_step]
        self._batch_size = sum(counts)
        input_of = [number for number, alike in enumerate(by_input(sources)) for _ in alike]
        self._reader = MixedReader([SplitReader(source, "train", tasks) for source in sources], counts, input_of)
        self.samples_of_inputs: Sequence[int] = self._reader.samples_of_inputs
        self._pin_memory = options.pin_memory
        self._cache_use: Counter[str] = Counter()
        copies = [source.copy for source in sources if source.copy]
        if copies and not fits([source.manifest for source in sources if source.copy], copies[0].max_bytes):
            for stream in self.streams:
                stream.fetch_ahead(eval_split)
        self._batches = read_ahead(
            self._reader,
            map(np.concatenate, zip(*(stream.sample_ids() for stream in self.streams), strict=True)),
            batch_size=self._batch_size,
            workers=max(options.workers, 1) if copies else options.workers,
            stopped_seconds=options.stopped_seconds,
        )
        self._next: tuple[np.ndarray, list[np.ndarray], tuple[Found, ...]] | None = None

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
        draws = joined([stream.take(seen) for stream, seen in zip(self.streams, found, strict=True)])
        self._cache_use += sum((seen.cache for seen in found), Counter())
        targets = self._reader.targets(sample_ids_B, buffers, found)
        return batch_of(sample_ids_B, self._reader.inputs(buffers), targets, draws, pin_memory=self._pin_memory)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that determines which samples are at the cursors."""
        if len(self.streams) == 1:
            return self.streams[0].fingerprint
        facts = " ".join(f"{stream.data.name} {stream.fingerprint}" for stream in self.streams)
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def cache_use(self) -> Counter[str]:
        """Use of the cache for remote data: `hits` and `misses` of this rank's workers, and `fetched_bytes`, including
        shards fetched ahead. Empty for local data."""
        return self._cache_use + sum((stream.fetched_ahead for stream in self.streams), Counter())

    def arriving(self) -> dict[str, int]:
        """Return how many bytes have arrived of each shard that any process is fetching."""
        return self._reader.progress()

    def padding_batch(self) -> Batch:
        """Return a batch of this rank's size that consists of padding."""
        sample_ids_B, buffers = np.full(self._batch_size, PADDING), self._reader.buffers(self._batch_size)
        found = self._reader.read_into(buffers, sample_ids_B)
        targets = self._reader.targets(sample_ids_B, buffers, found)
        return batch_of(sample_ids_B, self._reader.inputs(buffers), targets)

    def close(self) -> None:
        """End the workers and close the shards."""
        for stream in self.streams:
            stream.close()
        self._batches.close()
        self._reader.close()
