"""From the paths of a configuration to data folders that every rank can read: fetched where remote, and verified.

A rank may be busy with that for hours, or wait for a server, so every long part runs under `run_while_polling`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from trainer.config.sections.data import DataConfig
from trainer.data.format.coverage import check_trainable
from trainer.data.format.manifest import MANIFEST_NAME, Manifest, ShardSpec, read_manifest
from trainer.data.format.specs import DataSpec, InputSpec
from trainer.data.format.tables import Table
from trainer.data.format.verify import verify_shards
from trainer.data.reading.ahead import groups_from
from trainer.data.reading.inputs import SharedInput, by_input, shared_inputs
from trainer.data.reading.mixture import merged
from trainer.data.reading.order import START, Cursor, order_seed
from trainer.data.remote.copies import copy_at
from trainer.data.remote.folder import DataFolder, check_room, fits, open_folder
from trainer.data.remote.shards import check_remote, fetch_shards
from trainer.errors import UserError
from trainer.runtime.agreement import facts_of_data, refuse_differences
from trainer.runtime.collectives import Runtime
from trainer.runtime.polling import run_while_polling

logger = logging.getLogger(__name__)


@dataclass
class Data:
    """What a run reads, whose manifests are parsed once a start.

    Attributes:
        sources: the data folders that this rank can read: those of data.sources in the order of their names, with
            those whose inputs are alike one after another; or the only one.
        spec: what the samples of all of them contain.
        inputs: of the sources, in their order.
        fetched_bytes: of shards that this rank has fetched into the cache, before and during training.
    """

    sources: tuple[DataFolder, ...]
    spec: DataSpec
    inputs: tuple[SharedInput, ...]
    fetched_bytes: int = 0

    def fetch(self, wanted: Callable[[DataFolder], Sequence[ShardSpec]], runtime: Runtime) -> None:
        """Fetch the shards that `wanted` names of each source and that are not here yet. Collective.

        Raises:
            UserError: one of them cannot be fetched; the same on every rank.
        """
        for source in self.sources:
            if source.copy:
                ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
                fetching = fetch_shards(source.copy, wanted(source), **ranks, shows=runtime.is_main)
                self.fetched_bytes += run_while_polling(runtime, partial(sum, fetching))

    def fetch_split(self, split: str, runtime: Runtime) -> None:
        """Fetch the shards of a split that are not here yet. Collective.

        Raises:
            UserError: one of them cannot be fetched; the same on every rank.
        """
        self.fetch(lambda source: source.manifest.split(split).shards, runtime)

    def has(self, split: str) -> bool:
        """Return whether every source has a split."""
        return all(split in source.manifest.splits for source in self.sources)

    def input_of(self, source: str) -> InputSpec:
        """Return the input of a source, by its name."""
        return next(each.spec for each in self.inputs if source in each.sources)

    @property
    def only(self) -> DataFolder:
        """The only data folder, for commands that read one.

        Raises:
            UserError: there are several.
        """
        if len(self.sources) > 1:
            names = ", ".join(source.name for source in self.sources)
            raise UserError(f"expected a run of one data folder (data.path); this one has sources: {names}")
        return self.sources[0]


def open_data(config: DataConfig, runtime: Runtime) -> Data:
    """Read the manifests and verify every shard, each rank its part; fetch first what is remote. Collective.

    Where the cache cannot hold all remote data, this only asks the server for each shard; a shard is then verified when
    it is fetched.

    Raises:
        UserError: a folder, a shard or a task is not as expected or not the same on every rank, a task has no
            label to learn from, or the cache is too small.
    """
    data, max_bytes = _open(config, runtime), config.cache.max_bytes
    copies = [source.manifest for source in data.sources if source.copy]
    whole = fits(copies, max_bytes)
    with runtime.raise_together():
        for source in data.sources:
            source.manifest.split("train")
        if not whole:
            check_room(copies, config.shuffle_samples, max_bytes)
    facts = [facts_of_data(source.path / MANIFEST_NAME, source.name) for source in data.sources]
    refuse_differences({name: fact for each in facts for name, fact in each.items()}, runtime.world_size)
    if whole:
        data.fetch(lambda source: _all_shards(source.manifest), runtime)

    def verify(source: DataFolder) -> list[str]:
        if source.copy and not whole:
            check_remote(source.copy, _all_shards(source.manifest)[runtime.rank :: runtime.world_size])
        tables = _verify(config, source, None, runtime)
        tasks, key = _trained(source, data.spec, config.tasks), "data.tasks"
        if source.name:
            key = f"data.sources.{source.name}.tasks"
        return check_trainable(source.path, source.manifest, tasks, tables["train"], key)

    for source in data.sources:
        for warning in run_while_polling(runtime, partial(verify, source)):
            if runtime.is_main:
                logger.warning("%s", warning)
    return data


def open_split(config: DataConfig, split: str | None, runtime: Runtime) -> Data:
    """Read the manifests and verify a split, to evaluate or describe what was trained. Collective.

    Args:
        config: of the run.
        split: None: all of them.
        runtime: the processes.

    Raises:
        UserError: a folder, a shard or a task is not as expected, or there is no such split.
    """
    data = _open(config, runtime)
    for source in data.sources:
        run_while_polling(runtime, partial(_verify, config, source, split, runtime))
    return data


def fetch_first(
    data: Data, cursors: Mapping[str, Cursor], runtime: Runtime, *, seed: int, group_samples: int, eval_split: str
) -> None:
    """Fetch the shards that training begins with, and those of evaluations, where they are not here. Collective.

    Args:
        data: opened.
        cursors: source's name -> where training begins in it; without one, at the start.
        runtime: the processes.
        seed: of the order.
        group_samples: samples that are shuffled together.
        eval_split: the split that evaluations read.

    Raises:
        UserError: one of them cannot be fetched.
    """

    def wanted(source: DataFolder) -> list[ShardSpec]:
        train, cursor = source.manifest.split("train").shards, cursors.get(source.name, START)
        own_seed = order_seed(seed, source.name)
        _, first = next(groups_from(cursor, train, seed=own_seed, group_samples=group_samples))
        return [*first, *source.manifest.split(eval_split).shards]

    data.fetch(wanted, runtime)


def _open(config: DataConfig, runtime: Runtime) -> Data:
    cache = config.cache
    folders = {
        name: run_while_polling(runtime, partial(open_folder, source.path, cache.dir, cache.max_bytes))
        for name, source in config.folders.items()
    }
    with runtime.raise_together():
        found = [
            DataFolder(
                folder,
                read_manifest(folder),
                copy_at(folder, cache.dir, cache.max_bytes),
                name,
                config.folders[name].tasks,
            )
            for name, folder in folders.items()
        ]
        sources = tuple(chain.from_iterable(by_input(found)))
        spec = merged(sources)
        if config.tasks is not None:
            spec.select_tasks(config.tasks)
    return Data(sources, spec, shared_inputs(sources))


def _all_shards(manifest: Manifest) -> list[ShardSpec]:
    return [shard for split in manifest.splits.values() for shard in split.shards]


def _trained(source: DataFolder, spec: DataSpec, tasks: Sequence[str] | None) -> list[str]:
    """Return the names of the run's tasks whose labels a source gives.

    Raises:
        UserError: there are none.
    """
    own = [task.name for task in source.tasks]
    trained = [task.name for task in (spec.tasks if tasks is None else spec.select_tasks(tasks))]
    if not set(own) & set(trained):
        raise UserError(
            f"data.tasks has none of the tasks of source {source.name!r} ({', '.join(own)}). Leave the source out, or "
            "name one of them"
        )
    return [name for name in trained if name in own]


def _verify(
    config: DataConfig, source: DataFolder, split: str | None, runtime: Runtime
) -> dict[str, tuple[Table, Table]]:
    return verify_shards(
        source.path,
        source.manifest,
        None if split is None else [split],
        checksum=config.verify == "checksum",
        is_copy=source.copy is not None,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
