"""The canonical order: which sample stands at (seed, epoch, position), whatever the ranks and workers.

Everything here is a pure function of a few integers. A run's whole place in its data is one `Cursor`, the same on
every rank, so a run may stop at any step and go on with another number of processes or workers.

Shapes: N samples of a split, B samples of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.errors import UserError

PADDING = -1
"""Sample id of a slot that only fills up a batch."""


@dataclass(frozen=True)
class Cursor:
    """How far a run has got, counted over all ranks together.

    Attributes:
        epoch: counts from 0.
        samples: positions of this epoch's order that are already consumed.
    """

    epoch: int
    samples: int

    def settle(self, num_samples: int, global_batch: int) -> "Cursor":
        """This cursor, or the start of the next epoch when less than one global batch is left in this one."""
        return self if self.samples + global_batch <= num_samples else Cursor(self.epoch + 1, 0)

    def advance(self, num_samples: int, global_batch: int) -> "Cursor":
        """The cursor after one more global batch."""
        return Cursor(self.epoch, self.samples + global_batch).settle(num_samples, global_batch)


START = Cursor(epoch=0, samples=0)


def hash64(seed: int, stream: int, index_N: np.ndarray) -> np.ndarray:
    """Random 64-bit words that depend on nothing but their arguments: not on numpy's version, not on a call before.

    Each (seed, stream) gives a bijection of 64-bit words, so different indices never collide. The mixer is splitmix64's
    (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").

    Args:
        seed: of the run.
        stream: which of the seed's independent streams, for instance the epoch.
        index_N: non-negative integers.

    Returns:
        uint64, shape (N,).
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for word in (seed, stream):
            key = _mix64(key + golden + np.uint64(word % 2**64))
        return _mix64(key ^ _mix64((np.asarray(index_N).astype(np.uint64) + np.uint64(1)) * golden))


def _mix64(x_N: np.ndarray) -> np.ndarray:
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The sample at every position of an epoch: a full permutation, new for each (seed, epoch).

    Returns:
        int64 sample ids, shape (N,).
    """
    # Different samples never have equal keys, so every sort gives this one permutation.
    return np.argsort(hash64(seed, epoch, np.arange(num_samples)))


def check_global_batch(num_samples: int, *, global_batch: int, world_size: int) -> None:
    """Refuses a batch that cannot be cut into equal slices, or that the split cannot fill once.

    Raises:
        UserError: naming the numbers and what to change.
    """
    if global_batch < 1:
        raise UserError(f"The global batch must be at least 1, found {global_batch}.")
    if global_batch % world_size:
        below, above = global_batch // world_size * world_size, -(-global_batch // world_size) * world_size
        fits = " or ".join(str(batch) for batch in (below, above) if batch)
        raise UserError(
            f"A global batch of {global_batch} samples cannot be cut into {world_size} equal slices, one per process.\n"
            f"Use a global batch of {fits}, or a number of processes that divides {global_batch}."
        )
    if num_samples < global_batch:
        most = num_samples // world_size * world_size
        raise UserError(
            f"The train split holds {num_samples} samples, less than one global batch of {global_batch}.\n"
            + (f"Use a global batch of at most {most}, or make" if most else "Make")
            + " more samples."
        )


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """This rank's contiguous share of `size` slots, which `world_size` divides."""
    assert size % world_size == 0
    assert 0 <= rank < world_size
    share = size // world_size
    return slice(rank * share, (rank + 1) * share)


def train_batches(
    num_samples: int, *, global_batch: int, seed: int, rank: int, world_size: int, cursor: Cursor
) -> Iterator[np.ndarray]:
    """This rank's sample ids of every global batch from the cursor on, without end.

    The last samples of an epoch that cannot fill a global batch are left out; each epoch's permutation leaves out
    others.

    Yields:
        int64 sample ids, shape (B,), B = global_batch / world_size.
    """
    mine = rank_slice(global_batch, rank, world_size)
    cursor = cursor.settle(num_samples, global_batch)
    while True:
        order_N = epoch_order(num_samples, seed=seed, epoch=cursor.epoch)
        epoch = cursor.epoch
        while cursor.epoch == epoch:
            yield order_N[cursor.samples : cursor.samples + global_batch][mine]
            cursor = cursor.advance(num_samples, global_batch)


def eval_batches(num_samples: int, *, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's share of one pass in which all ranks together see every sample exactly once.

    Every rank gets the same number of batches; slots beyond the last sample hold PADDING.

    Returns:
        int64 sample ids, each of shape (B,), B = batch_size.
    """
    step = batch_size * world_size
    padded_N = np.full(-(-num_samples // step) * step, PADDING)
    padded_N[:num_samples] = np.arange(num_samples)
    return [global_batch[rank_slice(step, rank, world_size)] for global_batch in padded_N.reshape(-1, step)]
