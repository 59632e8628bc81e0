"""From data.path to a data folder that every rank can read: fetched where it is remote, and verified."""

from collections.abc import Sequence
from pathlib import Path

from trainer.config import Experiment
from trainer.data.format.manifest import Manifest, ShardSpec, read_manifest
from trainer.data.format.origin import origin
from trainer.data.format.verify import verify_shards
from trainer.data.reading.ahead import groups_from
from trainer.data.reading.order import Cursor
from trainer.data.remote.folder import check_remote, check_room, fetch_for, fits, local_folder, open_folder
from trainer.runtime.setup import Runtime

TURN_SECONDS = 60.0


def open_data(experiment: Experiment, runtime: Runtime) -> Manifest:
    """Read the manifest and hold every shard against it, each rank its share; fetch first what is remote. Collective.

    Of remote data that the cache cannot hold, each shard is looked for on the server, and verified when it comes.

    Raises:
        UserError: the folder, a shard or a task is not what it should be, or the cache is too small.
    """
    config = experiment.data
    with runtime.together():
        folder = open_folder(config.path, config.cache.dir, config.cache.max_bytes)
        manifest = read_manifest(folder)
        if config.tasks is not None:
            manifest.select_tasks(config.tasks)
        is_copy, whole = origin(folder) is not None, fits(manifest, config.cache.max_bytes)
        if is_copy and not whole:
            check_room(manifest, config.shuffle_samples, config.cache.max_bytes)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    if is_copy and whole:
        _fetch_together(folder, shards, runtime)
    with runtime.together():
        if is_copy and not whole:
            check_remote(folder, shards[runtime.rank :: runtime.world_size])
        checksum = config.verify == "checksum"
        verify_shards(folder, manifest, checksum=checksum, rank=runtime.rank, world_size=runtime.world_size)
    return manifest


def fetch_first(experiment: Experiment, manifest: Manifest, cursor: Cursor, runtime: Runtime) -> None:
    """Fetch the shards that training begins with at `cursor`, where the data is remote. Collective.

    Raises:
        UserError: one of them cannot be fetched.
    """
    config = experiment.data
    folder = local_folder(config.path, config.cache.dir)
    if origin(folder) is not None:
        shards = manifest.split("train").shards
        _, first = next(groups_from(cursor, shards, seed=experiment.seed, group_samples=config.shuffle_samples))
        _fetch_together(folder, first, runtime)


def _fetch_together(folder: Path, shards: Sequence[ShardSpec], runtime: Runtime) -> None:
    """In turns, so that no rank waits for another one's downloads until it takes that one for lost."""
    whole = False
    while not whole:
        with runtime.together():
            mine = fetch_for(TURN_SECONDS, folder, shards, rank=runtime.rank, world_size=runtime.world_size)
        whole = all(runtime.gather(mine))
