"""Shards of a copy, several at a time: looked for on their server, or fetched."""

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
"""Shards that a process fetches at a time."""

Value = TypeVar("Value")


def check_remote(copy: Copy, shards: Sequence[ShardSpec]) -> None:
    """Look for the shards that a copy lacks on their server, and at their sizes.

    Raises:
        UserError: one is not there, or not of the size that the manifest promises.
    """
    absent = [shard for shard in shards if not (copy.folder / shard.file).exists()]
    for _ in _by_several(lambda shard: check_file(f"{copy.url}/{shard.file}", shard), absent):
        pass


def fetch_shards(
    copy: Copy, shards: Sequence[ShardSpec], *, rank: int = 0, world_size: int = 1, shows: bool = False
) -> Generator[int, None, None]:
    """Fetch what a copy lacks of some shards; ranks begin at different ones.

    Args:
        copy: which.
        shards: of it.
        rank: of this process.
        world_size: number of processes that fetch the same.
        shows: a progress bar, on a terminal.

    Yields:
        How many bytes this process has fetched of a shard, for each that was not there.

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
    """Work on some shards at a time; each as it is done, and an error as soon as it is met.

    In threads that end with the process: it would wait for those of a ThreadPoolExecutor, for as long as they transfer.
    """
    todo, done = deque(shards), SimpleQueue[tuple[ShardSpec, Future[Value]]]()

    def go_on() -> None:
        with suppress(IndexError):
            while True:
                shard, result = todo.popleft(), Future[Value]()
                try:
                    result.set_result(work(shard))
                except Exception as error:
                    result.set_exception(error)
                done.put((shard, result))

    for _ in range(min(NUM_CONNECTIONS, len(shards))):
        threading.Thread(target=go_on, daemon=True).start()
    try:
        for _ in shards:
            shard, result = done.get()
            yield shard, result.result()
    finally:
        todo.clear()
