"""Check or fetch the shards of a copy, several at a time."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trainer.data.format.manifest import ShardSpec
from trainer.data.remote.cache import fetch
from trainer.data.remote.copies import Copy
from trainer.data.remote.transfer import check_file

NUM_CONNECTIONS = 4
"""Number of shards that a process fetches at a time."""

Value = TypeVar("Value")


def check_remote(copy: Copy, shards: Sequence[ShardSpec]) -> None:
    """Check that the server has the shards that a copy lacks, and that their sizes are right.

    Raises:
        UserError: a shard is missing, or its size differs from the manifest.
    """
    absent = [shard for shard in shards if not (copy.folder / shard.file).exists()]
    for _ in _by_several(lambda shard: check_file(f"{copy.url}/{shard.file}", shard), absent):
        pass


def fetch_shards(
    copy: Copy, shards: Sequence[ShardSpec], *, rank: int = 0, world_size: int = 1, shows: bool = False
) -> Generator[int, None, None]:
    """Fetch the shards that a copy lacks; each rank starts at a different one.

    Args:
        copy: the copy.
        shards: shards of it.
        rank: this process's rank.
        world_size: number of processes that fetch the same shards.
        shows: whether to show a progress bar on a terminal.

    Yields:
        How many bytes this process has fetched, for each shard that was missing.

    Raises:
        UserError: as `fetch`.
    """
    absent = [shard for shard in shards if not (copy.folder / shard.file).exists()]
    first = len(absent) * rank // world_size
    absent = absent[first:] + absent[:first]
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    hidden = not (shows and absent and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        bar = progress.add_task("fetching shards", total=sum(shard.bytes for shard in absent))
        for shard, fetched_bytes in _by_several(lambda shard: fetch(copy, shard), absent):
            progress.advance(bar, shard.bytes)
            yield fetched_bytes


def _by_several(
    work: Callable[[ShardSpec], Value], shards: Sequence[ShardSpec]
) -> Generator[tuple[ShardSpec, Value], None, None]:
    """Work on several shards at a time; yield each when it is done, and raise an error as soon as it occurs.

    The threads are daemons, which end with the process: at exit it would wait for a ThreadPoolExecutor's transfers.
    """
    todo, done = deque(shards), SimpleQueue[tuple[ShardSpec, Future[Value]]]()

    def run() -> None:
        with suppress(IndexError):
            while True:
                shard, result = todo.popleft(), Future[Value]()
                try:
                    result.set_result(work(shard))
                except Exception as error:
                    result.set_exception(error)
                done.put((shard, result))

    for _ in range(min(NUM_CONNECTIONS, len(shards))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in shards:
            shard, result = done.get()
            yield shard, result.result()
    finally:
        todo.clear()
