"""Read batches in which each of several sources has slots of its own.

Shapes: B samples of a batch, of all sources.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trainer.data.reading.reader import Found, SplitReader


class MixedReader:
    """Reads the samples of each source into its slots, one source after the other. Workers may run it.

    Args:
        readers: of the sources, for the same tasks and inputs of the same shape.
        counts: how many slots of a batch each source has.
    """

    def __init__(self, readers: Sequence[SplitReader], counts: Sequence[int]) -> None:
        self._readers = readers
        ends = np.cumsum([0, *counts]).tolist()
        self._slots = [slice(begin, end) for begin, end in pairwise(ends)]

    def buffers(self, batch_size: int) -> list[np.ndarray]:
        """Return buffers for the whole batch, as `SplitReader.buffers`."""
        return self._readers[0].buffers(batch_size)

    def read_into(self, buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray) -> tuple[Found, ...]:
        """Read and decode samples, as `SplitReader.read_into`; return what was found of each source.

        Raises:
            UserError: a shard cannot be read, or ends before the sample.
        """
        return tuple(
            reader.read_into([buffer[own] for buffer in buffers], sample_ids_B[own])
            for reader, own in zip(self._readers, self._slots, strict=True)
        )

    def targets(
        self, sample_ids_B: np.ndarray, buffers: Sequence[np.ndarray], found: Sequence[Found]
    ) -> dict[str, np.ndarray]:
        """Return the targets of the samples just read, by task, as in `Batch`."""
        parts = [
            reader.targets(sample_ids_B[own], [buffer[own] for buffer in buffers], seen.bad)
            for reader, own, seen in zip(self._readers, self._slots, found, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]  # Without a copy of the targets for every pixel.
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def progress(self) -> dict[str, int]:
        """Return how many bytes have arrived of each shard that is being fetched."""
        return {name: size for reader in self._readers for name, size in reader.progress().items()}

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        for reader in self._readers:
            reader.close()
