"""The canonical order: which sample is at (seed, epoch, position), independent of ranks and workers.

Everything here is a pure function of a few integers. A run's position in its data is one `Cursor`, the same on every
rank, so a run may stop at any step and continue with another number of processes or workers.

Shapes: N samples of a split, G samples of a group, B samples of a batch, S shards.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from trainer.errors import UserError

PADDING = -1
"""Sample id of an empty slot, which only fills up a batch."""

GROUP_SAMPLES = 2**22
"""Samples that are shuffled together. To shuffle this many takes a second and 100 MiB, of which it keeps 32 MiB."""


class Purpose(IntEnum):
    """What random words are used for. Each purpose has independent words."""

    SAMPLES = 0
    SHARDS = 1
    FLIP = 2
    ROW = 3
    COLUMN = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    SATURATION = 7


@dataclass(frozen=True)
class Cursor:
    """A run's position in its data, counted over all ranks.

    Attributes:
        epoch: number of the epoch, from 0.
        samples: how many positions of the epoch's order are consumed.
    """

    epoch: int
    samples: int

    def settle(self, num_samples: int, global_batch: int) -> "Cursor":
        """Return this cursor, or the start of the next epoch if less than one global batch is left in this one."""
        return self if self.samples + global_batch <= num_samples else Cursor(self.epoch + 1, 0)

    def advance(self, num_samples: int, global_batch: int) -> "Cursor":
        """Return the cursor after one more global batch."""
        return Cursor(self.epoch, self.samples + global_batch).settle(num_samples, global_batch)


START = Cursor(epoch=0, samples=0)


def hash64(seed: int, stream: int, index_N: np.ndarray, purpose: Purpose = Purpose.SAMPLES) -> np.ndarray:
    """Return random 64-bit words that depend on the arguments only: not on numpy's version or on earlier calls.

    Each (seed, stream, purpose) gives a bijection of 64-bit words, so different indices never collide. The mixer is
    splitmix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").

    Args:
        seed: the run's seed.
        stream: number of one of the seed's independent streams, such as the epoch.
        index_N: non-negative integers.
        purpose: what the words are used for.

    Returns:
        uint64, shape (N,).
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        # SAMPLES adds no word, so that runs and data made before there were other purposes keep their order.
        for word in (seed, stream, purpose) if purpose else (seed, stream):
            key = _mix64(key + golden + np.uint64(word % 2**64))
        return _mix64(key ^ _mix64((np.asarray(index_N).astype(np.uint64) + np.uint64(1)) * golden))


def _mix64(x_N: np.ndarray) -> np.ndarray:
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Permute all sample ids, differently for each (seed, epoch): the order of an epoch that is one group.

    Returns:
        int64 sample ids, shape (N,).
    """
    return _permuted(np.arange(num_samples), seed, epoch)


def _permuted(ids_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    # Different samples never have equal keys, so every sorting algorithm gives the same permutation.
    return ids_N[np.argsort(hash64(seed, epoch, ids_N))]


def shuffled_groups(
    shard_samples: Sequence[int], *, seed: int, epoch: int, group_samples: int = GROUP_SAMPLES, start: int = 0
) -> Iterator[np.ndarray]:
    """Yield the sample ids of an epoch from position `start` on, group by group.

    The shards are put in random order and divided into groups: a group ends before the first shard that begins after
    another `group_samples` samples. The samples of a group are permuted. So a split of at most `group_samples` is
    permuted as a whole; of a larger one, only one group at a time is in memory and needed on the local disk.

    Args:
        shard_samples: number of samples of every shard; the ids count through them.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        group_samples: samples that are shuffled together; part of what determines the order.
        start: position in the epoch; earlier groups are skipped.

    Yields:
        int64 sample ids, shape (G,); the first group without what is before `start`.
    """
    samples_S = np.asarray(shard_samples)
    first_id_S = np.cumsum(samples_S) - samples_S
    end = 0
    for shards in shard_groups(shard_samples, seed=seed, epoch=epoch, group_samples=group_samples):
        end += int(samples_S[shards].sum())
        if end > start:
            ids_G = np.concatenate([np.arange(first_id_S[s], first_id_S[s] + samples_S[s]) for s in shards])
            yield _permuted(ids_G, seed, epoch)[max(start - (end - len(ids_G)), 0) :]


def shard_groups(
    shard_samples: Sequence[int], *, seed: int, epoch: int, group_samples: int = GROUP_SAMPLES
) -> list[np.ndarray]:
    """Return the shard numbers of each group of `shuffled_groups`."""
    samples_S = np.asarray(shard_samples)
    order_S = np.argsort(hash64(seed, epoch, np.arange(len(samples_S)), Purpose.SHARDS))
    begin_S = np.cumsum(samples_S[order_S]) - samples_S[order_S]
    group_S = begin_S // group_samples
    return np.split(order_S, np.flatnonzero(np.diff(group_S)) + 1)


def order_seed(seed: int, source: str) -> int:
    """Return the seed of a source's order, so that sources of equal sizes have different ones.

    Args:
        seed: the run's.
        source: its name; empty for the only one of a run, whose seed is the run's own.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {source}".encode()).digest()[:8]) if source else seed


def check_global_batch(num_samples: int, *, global_batch: int, world_size: int) -> None:
    """Refuse a global batch that cannot be divided into equal slices, or is larger than the split.

    Raises:
        UserError: it does not fit; the message says what to change.
    """
    if global_batch < 1:
        raise UserError(f"The global batch must be at least 1, found {global_batch}.")
    if global_batch % world_size:
        below, above = global_batch // world_size * world_size, -(-global_batch // world_size) * world_size
        fits = " or ".join(str(batch) for batch in (below, above) if batch)
        raise UserError(
            f"A global batch of {global_batch} samples cannot be divided equally among {world_size} processes.\n"
            f"Use a global batch of {fits}, or a number of processes that divides {global_batch}."
        )
    if num_samples < global_batch:
        most = num_samples // world_size * world_size
        raise UserError(
            f"The train split has {num_samples} samples, less than one global batch of {global_batch}.\n"
            + (f"Use a global batch of at most {most}, or make" if most else "Make")
            + " more samples."
        )


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """Return this rank's contiguous slice of `size` slots; `world_size` must divide `size`."""
    assert size % world_size == 0
    assert 0 <= rank < world_size
    length = size // world_size
    return slice(rank * length, (rank + 1) * length)


def train_batches(
    shard_samples: Sequence[int],
    *,
    global_batch: int,
    seed: int,
    rank: int,
    world_size: int,
    cursor: Cursor,
    group_samples: int = GROUP_SAMPLES,
) -> Iterator[np.ndarray]:
    """Yield this rank's sample ids of every global batch from the cursor on, without end.

    The last samples of an epoch that do not fill a global batch are left out; they differ from epoch to epoch.

    Yields:
        int64 sample ids, shape (B,), B = global_batch / world_size.
    """
    own_slots = rank_slice(global_batch, rank, world_size)
    cursor = cursor.settle(sum(shard_samples), global_batch)
    while True:
        ahead_N = np.empty(0, np.int64)
        for group_G in shuffled_groups(
            shard_samples, seed=seed, epoch=cursor.epoch, group_samples=group_samples, start=cursor.samples
        ):
            ahead_N = np.concatenate([ahead_N, group_G])
            whole = len(ahead_N) // global_batch * global_batch
            for begin in range(0, whole, global_batch):
                yield ahead_N[begin : begin + global_batch][own_slots]
            ahead_N = ahead_N[whole:]
        cursor = Cursor(cursor.epoch + 1, 0)


def eval_batches(num_samples: int, *, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Return this rank's batches of a pass in which all ranks together see every sample exactly once.

    Every rank gets the same number of batches; slots beyond the last sample contain PADDING.

    Returns:
        int64 sample ids, each of shape (B,), B = batch_size.
    """
    step = batch_size * world_size
    padded_N = np.full(-(-num_samples // step) * step, PADDING)
    padded_N[:num_samples] = np.arange(num_samples)
    return [global_batch[rank_slice(step, rank, world_size)] for global_batch in padded_N.reshape(-1, step)]
