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
        readers: of the sources, for the same tasks; those whose inputs are alike follow one another.
        counts: how many slots of a batch each source has.
        input_of: the index of each source's input, counted from 0. Where there are several, no task has a target for
            every pixel.

    Attributes:
        samples_of_inputs: how many slots of a batch each input has.
    """

    def __init__(self, readers: Sequence[SplitReader], counts: Sequence[int], input_of: Sequence[int]) -> None:
        self._readers = readers
        self._slots = _slices(counts)
        self.samples_of_inputs: list[int] = np.bincount(input_of, counts).astype(int).tolist()
        inputs = _slices(self.samples_of_inputs)
        begins = [inputs[number].start for number in input_of]
        # The buffers that each source reads into, and its rows there.
        self._buffers = [slice(number, number + 1) if len(inputs) > 1 else slice(None) for number in input_of]
        self._rows = [
            slice(own.start - begin, own.stop - begin) for own, begin in zip(self._slots, begins, strict=True)
        ]
        self._of_inputs = [readers[input_of.index(number)] for number in range(len(inputs))]

    def buffers(self, batch_size: int) -> list[np.ndarray]:
        """Return buffers for the whole batch: one per input, then the dense tasks' targets."""
        of_inputs = zip(self._of_inputs, self.samples_of_inputs, strict=True)
        return [buffer for reader, count in of_inputs for buffer in reader.buffers(count)]

    def inputs(self, buffers: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return those of the buffers that hold inputs."""
        return buffers[: len(self.samples_of_inputs)]

    def read_into(self, buffers: Sequence[np.ndarray], sample_ids_B: np.ndarray) -> tuple[Found, ...]:
        """Read and decode samples, as `SplitReader.read_into`; return what was found of each source.

        Raises:
            UserError: a shard cannot be read, or ends before the sample.
        """
        return tuple(
            reader.read_into(own_buffers, sample_ids_B[own])
            for reader, own, own_buffers in zip(self._readers, self._slots, self._own(buffers), strict=True)
        )

    def targets(
        self, sample_ids_B: np.ndarray, buffers: Sequence[np.ndarray], found: Sequence[Found]
    ) -> dict[str, np.ndarray]:
        """Return the targets of the samples just read, by task, as in `Batch`."""
        each = zip(self._readers, self._slots, self._own(buffers), found, strict=True)
        parts = [reader.targets(sample_ids_B[own], own_buffers, seen.bad) for reader, own, own_buffers, seen in each]
        if len(parts) == 1:
            return parts[0]  # Without a copy of the targets for every pixel.
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _own(self, buffers: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Return each source's slots of its buffers."""
        return [
            [buffer[rows] for buffer in buffers[which]] for which, rows in zip(self._buffers, self._rows, strict=True)
        ]

    def progress(self) -> dict[str, int]:
        """Return how many bytes have arrived of each shard that is being fetched."""
        return {name: size for reader in self._readers for name, size in reader.progress().items()}

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        for reader in self._readers:
            reader.close()


def _slices(counts: Sequence[int]) -> list[slice]:
    """Return where each of several parts lies, one after another."""
    return [slice(begin, end) for begin, end in pairwise(np.cumsum([0, *counts]).tolist())]
