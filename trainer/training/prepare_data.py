"""From data.path to a data folder that every rank can read: fetched where it is remote, and verified.

A rank may be busy with that for hours, or wait for a server, so every long part runs under `run_while_polling`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.sections.data import DataConfig
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
from trainer.runtime.polling import run_while_polling

logger = logging.getLogger(__name__)


@dataclass
class Data:
    """A data folder that this rank can read, whose manifest is parsed once a start.

    Attributes:
        folder: on this machine.
        manifest: of the folder.
        copy: the remote data that the folder is a copy of; None for a folder of this machine.
        fetched_bytes: of shards that this rank has fetched into the cache, before and during training.
    """

    folder: Path
    manifest: Manifest
    copy: Copy | None
    fetched_bytes: int = 0

    def fetch(self, shards: Sequence[ShardSpec], runtime: Runtime) -> None:
        """Fetch the shards that are not here yet. Collective.

        Raises:
            UserError: one of them cannot be fetched; the same on every rank.
        """
        if self.copy:
            ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
            fetching = fetch_shards(self.copy, shards, **ranks, shows=runtime.is_main)
            self.fetched_bytes += run_while_polling(runtime, lambda: sum(fetching))


def open_data(config: DataConfig, runtime: Runtime) -> Data:
    """Read the manifest and verify every shard, each rank its part; fetch first what is remote. Collective.

    Where the cache cannot hold all remote data, this only asks the server for each shard; a shard is then verified when
    it is fetched.

    Raises:
        UserError: the folder, a shard or a task is not as expected or not the same on every rank, a task has no
            label to learn from, or the cache is too small.
    """
    data = _open(config, runtime)
    manifest, copy, max_bytes = data.manifest, data.copy, config.cache.max_bytes
    with runtime.raise_together():
        manifest.split("train")
        if config.tasks is not None:
            manifest.select_tasks(config.tasks)
        whole = fits(manifest, max_bytes)
        if copy and not whole:
            check_room(manifest, config.shuffle_samples, max_bytes)
    refuse_differences(facts_of_data(data.folder / MANIFEST_NAME), runtime.world_size)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    if whole:
        data.fetch(shards, runtime)

    def verify() -> list[str]:
        if copy and not whole:
            check_remote(copy, shards[runtime.rank :: runtime.world_size])
        tables = _verify(config, data, None, runtime)
        return check_trainable(data.folder, manifest, config.tasks, tables["train"])

    for warning in run_while_polling(runtime, verify):
        if runtime.is_main:
            logger.warning("%s", warning)
    return data


def open_split(config: DataConfig, split: str | None, runtime: Runtime) -> Data:
    """Read the manifest and verify a split, to evaluate or describe what was trained. Collective.

    Args:
        config: of the run.
        split: None: all of them.
        runtime: the processes.

    Raises:
        UserError: the folder, a shard or a task is not as expected, or there is no such split.
    """
    data = _open(config, runtime)
    run_while_polling(runtime, lambda: _verify(config, data, split, runtime))
    return data


def fetch_first(
    data: Data, cursor: Cursor, runtime: Runtime, *, seed: int, group_samples: int, eval_split: str
) -> None:
    """Fetch the shards that training begins with at `cursor`, and those of evaluations, where they are not here.

    Collective.

    Args:
        data: opened.
        cursor: where training begins.
        runtime: the processes.
        seed: of the order.
        group_samples: samples that are shuffled together.
        eval_split: the split that evaluations read.

    Raises:
        UserError: one of them cannot be fetched.
    """
    train = data.manifest.split("train").shards
    _, first = next(groups_from(cursor, train, seed=seed, group_samples=group_samples))
    data.fetch([*first, *data.manifest.split(eval_split).shards], runtime)


def _open(config: DataConfig, runtime: Runtime) -> Data:
    cache = config.cache
    folder = run_while_polling(runtime, lambda: open_folder(config.path, cache.dir, cache.max_bytes))
    with runtime.raise_together():
        data = Data(folder, read_manifest(folder), copy_at(folder, cache.dir, cache.max_bytes))
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
