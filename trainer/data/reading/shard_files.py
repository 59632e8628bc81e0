"""Read parts of shards with `pread`, with a bounded number of open files, and retries if the disk fails briefly."""

import logging
import os
import resource
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path

from trainer.data.format.faults import remedy, unreadable
from trainer.data.format.manifest import ShardSpec
from trainer.data.remote.cache import arriving, fetch, open_shard
from trainer.data.remote.copies import Copy
from trainer.errors import UserError

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = (0.5, 2.0, 8.0)
"""Waits before each retry of a shard that cannot be read; after the last retry the run stops."""


class ShardFiles:
    """Reads from the shards of a split, opening each when it is first needed.

    Keeps the most recently used ones open, at most half as many as the process may have open, so any number of shards
    works under any `ulimit -n`. A forked process may go on using its copy of this object.

    Args:
        folder: the data folder.
        shards: the shards of the split.
        copy: set if the folder is a copy of remote data: missing shards are then fetched.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardSpec], copy: Copy | None = None) -> None:
        self._folder = folder
        self._shards = shards
        self._copy = copy
        self._use: Counter[str] = Counter()
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._most = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1)

    def pread(self, shard: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of a shard from `offset` on.

        Raises:
            UserError: the shard cannot be read, also after all retries, or is too short.
        """
        for wait in (*RETRY_AFTER_SECONDS, None):
            try:
                data = os.pread(self._descriptor(shard), size, offset)
                break
            except OSError as error:
                self._forget(shard)
                if wait is None:
                    raise unreadable(self.path(shard), error) from None
                logger.warning("%s cannot be read: %s. Trying again in %g s", self.path(shard), error, wait)
                time.sleep(wait)
        if len(data) < size:
            found = f"expected {size} bytes at byte {offset}, found {len(data)}"
            raise UserError(f"{self.path(shard)}: {found}.\n{remedy(self._folder)}")
        return data

    def path(self, shard: int) -> Path:
        """Return the path of a shard, by its number in the split."""
        return self._folder / self._shards[shard].file

    def end_batch(self) -> Counter[str]:
        """Close the shards of a copy: the cache may need their space, but does not remove open ones.

        Returns:
            Counts since the last call: `hits`, shards that were in the cache when needed; `misses`; and
            `fetched_bytes`, their size. Empty if the folder is not a copy.
        """
        if self._copy:
            self.close()
        use, self._use = self._use, Counter()
        return use

    def arriving(self) -> dict[str, int]:
        """Return how many bytes have arrived of each shard that is being fetched. Empty if the folder is not a copy."""
        return arriving(self._copy) if self._copy else {}

    def close(self) -> None:
        """Close all shards; reading opens them again."""
        for shard in list(self._descriptors):
            self._forget(shard)

    def _descriptor(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        if len(self._descriptors) >= self._most:
            os.close(self._descriptors.popitem(last=False)[1])
        if self._copy:
            self._count(shard, self._copy)
        self._descriptors[shard] = open_shard(self._folder, self._shards[shard], self._copy)
        return self._descriptors[shard]

    def _count(self, shard: int, copy: Copy) -> None:
        if self.path(shard).exists():
            self._use["hits"] += 1
        else:
            self._use["misses"] += 1
            self._use["fetched_bytes"] += fetch(copy, self._shards[shard])

    def _forget(self, shard: int) -> None:
        if shard in self._descriptors:
            os.close(self._descriptors.pop(shard))
