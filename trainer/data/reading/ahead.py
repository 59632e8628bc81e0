"""Fetch the next group of shards while training uses the current one, if the data is too large for the cache."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

from trainer.data.format.manifest import ShardSpec
from trainer.data.reading.order import Cursor, shard_groups
from trainer.data.remote.cache import touch
from trainer.data.remote.copies import Copy
from trainer.data.remote.shards import fetch_shards
from trainer.errors import UserError

logger = logging.getLogger(__name__)

Group = tuple[Cursor, list[ShardSpec]]
"""Shards that are shuffled together, and the cursor at which they begin."""


def groups_from(cursor: Cursor, shards: Sequence[ShardSpec], *, seed: int, group_samples: int) -> Iterator[Group]:
    """Yield the groups of the canonical order without end, beginning with the one that contains `cursor`."""
    epoch, consumed = cursor.epoch, cursor.samples
    samples_S = [shard.samples for shard in shards]
    while True:
        begin = 0
        for numbers in shard_groups(samples_S, seed=seed, epoch=epoch, group_samples=group_samples):
            group = [shards[number] for number in numbers]
            end = begin + sum(shard.samples for shard in group)
            if end > consumed:
                yield Cursor(epoch, begin), group
            begin = end
        epoch, consumed = epoch + 1, 0


class ShardsAhead:
    """Fetches shards in a thread. If that fails, the reader fetches what it lacks, or raises the error.

    Args:
        copy: the copy of remote data.
        groups: as `groups_from` yields them.
        kept: shards that the cache should keep when it makes room for a group: they are read rarely, but repeatedly.

    Attributes:
        fetched_bytes: bytes fetched so far.
    """

    def __init__(self, copy: Copy, groups: Iterator[Group], kept: Sequence[ShardSpec] = ()) -> None:
        self._copy = copy
        self._groups = groups
        self._kept = kept
        self._reached = Cursor(-1, 0)
        self._closed = False
        self.fetched_bytes = 0
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shards-ahead", daemon=True)

    def reach(self, cursor: Cursor) -> None:
        """Tell the thread how far training has come."""
        with self._moved:
            self._reached = cursor
            self._moved.notify()
        if not self._thread.ident:
            self._thread.start()

    def close(self) -> None:
        """End the thread after the shards that it is fetching, without waiting for it."""
        with self._moved:
            self._closed = True
            self._moved.notify()

    def _run(self) -> None:
        before, _ = next(self._groups)
        for begin, shards in self._groups:
            with self._moved:
                while not (self._closed or self._is_reached(before)):
                    self._moved.wait()
            if self._closed:
                return
            touch(self._copy.folder, self._kept)
            try:
                with closing(fetch_shards(self._copy, shards)) as fetching:
                    for fetched_bytes in fetching:
                        self.fetched_bytes += fetched_bytes
                        if self._closed:
                            return
            except UserError as error:
                logger.warning("Shards are no longer fetched ahead of time: %s", error)
            before = begin

    def _is_reached(self, cursor: Cursor) -> bool:
        return (self._reached.epoch, self._reached.samples) >= (cursor.epoch, cursor.samples)
