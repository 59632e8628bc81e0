"""From data.path to a data folder that every rank can read: fetched where it is remote, and verified.

A rank may be busy with that for hours, or wait for a server. So it all happens in turns, in which each rank tells the
others that it still lives.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from trainer.config.schema import DataConfig, Experiment
from trainer.data.format.coverage import check_trainable
from trainer.data.format.manifest import MANIFEST_NAME, Manifest, ShardSpec, read_manifest
from trainer.data.format.tables import Table
from trainer.data.format.verify import verify_shards
from trainer.data.reading.ahead import groups_from
from trainer.data.reading.order import Cursor
from trainer.data.remote.copies import Copy, copy_at
from trainer.data.remote.folder import check_room, fits, open_folder
from trainer.data.remote.shards import check_remote, fetch_shards
from trainer.runtime.agreement import facts_of_data, refuse_differences
from trainer.runtime.collectives import Runtime

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0

Value = TypeVar("Value")


class _State(IntEnum):
    """Of a rank's work. What is the greatest of all ranks' decides."""

    DONE = 0
    BUSY = 1
    FAILED = 2


@dataclass
class Data:
    """A data folder that this rank can read.

    Attributes:
        folder: on this machine.
        manifest: of it.
        copy: what the folder is, where it is a copy of remote data.
        fetched_bytes: of shards that this rank has fetched into the cache, before and beside training.
    """

    folder: Path
    manifest: Manifest
    copy: Copy | None
    fetched_bytes: int = 0

    def fetch(self, shards: Sequence[ShardSpec], runtime: Runtime) -> None:
        """Fetch some shards, where they are not here. Collective.

        Raises:
            UserError: one of them cannot be fetched; the same on every rank.
        """
        if self.copy:
            ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
            fetching = fetch_shards(self.copy, shards, **ranks, shows=runtime.is_main)
            self.fetched_bytes += in_turns(runtime, lambda: sum(fetching))


def open_data(experiment: Experiment, runtime: Runtime) -> Data:
    """Read the manifest and hold every shard against it, each rank its share; fetch first what is remote. Collective.

    Of remote data that the cache cannot hold, each shard is looked for on the server, and verified when it comes.

    Raises:
        UserError: the folder, a shard or a task is not what it should be or not the same on every rank, a task has no
            label to learn from, or the cache is too small.
    """
    config = experiment.data
    folder = in_turns(runtime, lambda: open_folder(config.path, config.cache.dir, config.cache.max_bytes))
    with runtime.raise_together():
        manifest = read_manifest(folder)
        manifest.split("train")
        if config.tasks is not None:
            manifest.select_tasks(config.tasks)
        copy, whole = copy_at(folder, config.cache.dir, config.cache.max_bytes), fits(manifest, config.cache.max_bytes)
        if copy and not whole:
            check_room(manifest, config.shuffle_samples, config.cache.max_bytes)
    refuse_differences(facts_of_data(folder / MANIFEST_NAME), runtime.world_size)
    data = Data(folder, manifest, copy)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    if whole:
        data.fetch(shards, runtime)

    def verify() -> list[str]:
        if copy and not whole:
            check_remote(copy, shards[runtime.rank :: runtime.world_size])
        tables = _verify(config, data, None, runtime)
        return check_trainable(folder, manifest, config.tasks, tables["train"])

    for warning in in_turns(runtime, verify):
        if runtime.is_main:
            logger.warning("%s", warning)
    return data


def open_split(config: DataConfig, split: str | None, runtime: Runtime) -> Data:
    """Read the manifest and hold a split against it, to evaluate or describe what was trained. Collective.

    Args:
        config: of the run.
        split: None: all of them.
        runtime: the processes.

    Raises:
        UserError: the folder, a shard or a task is not what it should be, or there is no such split.
    """
    folder = in_turns(runtime, lambda: open_folder(config.path, config.cache.dir, config.cache.max_bytes))
    with runtime.raise_together():
        copy = copy_at(folder, config.cache.dir, config.cache.max_bytes)
        data = Data(folder, read_manifest(folder), copy)
    in_turns(runtime, lambda: _verify(config, data, split, runtime))
    return data


def _verify(config: DataConfig, data: Data, split: str | None, runtime: Runtime) -> dict[str, tuple[Table, Table]]:
    return verify_shards(
        data.folder,
        data.manifest,
        None if split is None else [split],
        checksum=config.verify == "checksum",
        is_copy=data.copy is not None,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )


def fetch_first(experiment: Experiment, data: Data, cursor: Cursor, runtime: Runtime) -> None:
    """Fetch the shards that training begins with at `cursor`, and the test split, where they are not here. Collective.

    Raises:
        UserError: one of them cannot be fetched.
    """
    train = data.manifest.split("train").shards
    _, first = next(groups_from(cursor, train, seed=experiment.seed, group_samples=experiment.data.shuffle_samples))
    data.fetch([*first, *data.manifest.split("test").shards], runtime)


def in_turns(runtime: Runtime, work: Callable[[], Value]) -> Value:
    """Do `work`, which must not communicate and may take as long as it likes; fail together. Collective.

    It is done in a thread, while this one tells the others, again and again, that it is not lost. A fault of one rank
    ends the wait of all; what the others are at ends with them.

    Raises:
        UserError: as `work`, of any rank, on every rank.
    """
    if runtime.world_size == 1:
        return work()
    result = Future[Value]()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    state = _State.BUSY
    while state is _State.BUSY:
        wait([result], TURN_SECONDS)
        mine = _State.BUSY if not result.done() else _State.FAILED if result.exception() else _State.DONE
        state = _State(runtime.all_reduce_max(mine))
    with runtime.raise_together():
        if result.done():
            return result.result()
    raise AssertionError("a rank that failed raises on every rank")
