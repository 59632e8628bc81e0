"""Copies of remote data: made, fetched and looked at."""

import os
from pathlib import Path

from trainer.data.format.manifest import ShardSpec, read_manifest
from trainer.data.remote.cache import open_shard
from trainer.data.remote.copies import Copy, copy_at
from trainer.data.remote.shards import fetch_shards

PLENTY = 1 << 30


def shards(folder: Path) -> list[ShardSpec]:
    return [shard for split in read_manifest(folder).splits.values() for shard in split.shards]


def copy_of(folder: Path, max_bytes: int = PLENTY) -> Copy:
    copy = copy_at(folder, folder.parent, max_bytes)
    assert copy is not None
    return copy


def fetch_all(folder: Path, **options: int) -> int:
    return sum(fetch_shards(copy_of(folder), shards(folder), **options))


def opened(folder: Path, shard: ShardSpec, max_bytes: int = PLENTY) -> int:
    return open_shard(folder, shard, copy_of(folder, max_bytes))


def aged(folder: Path, seconds: float = 100.0) -> None:
    """Let every shard be unopened for that much longer."""
    for path in folder.glob("*.tar"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.tar")}
